"""Why a plan leaves a part of its bound unused."""

from pbcompress.costs.bounds import Bounds
from pbcompress.costs.closed_form import Widths
from pbcompress.planning.allocation import all_choices
from pbcompress.planning.width_search import Request, WidthSearch

__all__ = ["why_unused"]

ENOUGH = 0.98  # of a bound that is used


def why_unused(search: WidthSearch, widths: Widths, request: Request) -> str:
    """Return why no bound is used up: the smallest step to wider layers, which is over it.

    Args:
        search: What found the widths.
        widths: Of its groups, which may be roles.
        request: The bounds.

    Returns:
        A sentence; "" where a bound is used up, or every layer has the most that it may have.
    """
    units, costs, limits = ["parameters"], [search.params], [request.params]
    if request.flops is not None:
        units, costs, limits = [*units, "FLOPs"], [*costs, search.flops], [*limits, request.flops]
    bounds = Bounds(costs, limits)
    totals = bounds.totals(widths)
    if bounds.load(totals) >= ENOUGH:
        return ""
    groups = search.grouping.groups
    multiples, gives_way = search.multiples(request)
    choices = all_choices(
        groups, [1] * len(groups) if gives_way else multiples, search.config.width
    )
    steps = [
        (bounds.load(bounds.after(totals, index, wider, widths)), index, wider)
        for index, allowed in enumerate(choices)
        for wider in [width for width in allowed if width > widths[index]][:1]
    ]
    load, index, wider = min(steps, default=(0.0, 0, 0))
    if load <= 1:
        return ""
    after = bounds.after(totals, index, wider, widths)
    shares = bounds.shares(after)
    over = shares.index(max(shares))
    group = groups[index]
    layers = list(dict.fromkeys(member.layer for member in group.members))
    others = f" and {len(layers) - 1} layers that go with it" if layers[1:] else ""
    channels = (wider - widths[index]) * group.channels_per_unit
    return (
        f"{limits[over] - totals[over]:,} {units[over]} are left over, because the smallest step "
        f"is larger: {channels} more channels of {layers[0]!r}{others} are "
        f"{after[over] - totals[over]:,}"
    )
