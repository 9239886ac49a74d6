# pbcompress on a CPU: docker build -t pbcompress . && docker run --rm -v "$PWD:/data" pbcompress demo
FROM python:3.11-slim
ARG TORCH=torch==2.13.0
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$INDEX" "$TORCH"
COPY . /source
RUN pip install --no-cache-dir "/source[demo]" && rm -rf /source
RUN useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["pbcompress"]
CMD ["--help"]
