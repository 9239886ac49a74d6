"""Do context dendrites, which multiply a layer's output, pay at equal size or equal latency?"""
