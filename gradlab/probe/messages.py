"""Tell people what a probe measures, and what its self-check found missing."""

from __future__ import annotations

import math

from gradlab.probe.instrument import Instrument
from gradlab.probe.selfcheck import SelfCheck


def report(
    instrument: Instrument, check: SelfCheck | None, worst_residual: float, model: str
) -> str:
    """What is measured and how complete it was; `check` is the last one."""
    layout, setup = instrument.layout, instrument.setup
    lines = [
        f"probe on policy '{setup.policy}' of {model}: {len(instrument.agents)} agents, "
        f"{instrument.num_parameters:,} parameters in {len(layout.slots)} tensors and "
        f"{len(layout.blocks)} blocks",
    ]
    if check is None:
        lines.append("no update yet")
    else:
        lines.append(
            f"{instrument.num_updates} updates; last residual {check.residual:.1e}, worst "
            f"{worst_residual:.1e} (tolerance {check.tolerance:.0e}), "
            f"coverage {check.coverage:.1%}"
        )
        lines += [f"not explained by the agents: {name}" for name in check.suspects]
    if setup.mode in ("fused", "streaming"):
        sites = [site for site, _ in instrument.capture.sites]
        alone = [site for site in sites if not site.is_fused]
        kinds = ", ".join(sorted({site.kind for site in alone}))
        lines.append(
            f"fused: {len(sites) - len(alone)} of {len(sites)} modules"
            + (f"; split beside autograd: {kinds}, e.g. '{alone[0].name}'" if alone else "")
        )
    lines += [
        f"not attributed: module '{site}': {why}"
        for site, why in instrument.capture.failures.items()
    ]
    lines += [
        f"no gradient of the effective weight: module '{site}': {why}"
        for site, why in instrument.extras.failures.items()
    ]
    if instrument.unsplit_reason:
        lines.append(f"no update shares: {instrument.unsplit_reason}")
    if instrument.is_late:
        lines.append(
            "attached to an optimizer that had already stepped: its earlier momentum belongs "
            "to no agent and fades with beta1^t"
        )
    return "\n".join(lines)


def complaint(instrument: Instrument, check: SelfCheck, step: int, warned: set[str]) -> str | None:
    """What is wrong with an update, once about each parameter (`warned` is added to); or None."""
    is_number = not math.isnan(check.residual)
    # Apart: a loss that overflowed once says nothing about what is captured of the others.
    told = set(check.suspects) if is_number else {"the gradient is not a number"}
    if check.residual <= check.tolerance or told <= warned:
        return None
    capture = instrument.capture
    if not instrument.ranks.is_first and not capture.failures:
        return None  # one voice is enough
    warned |= told
    shown = ", ".join(check.suspects[:8]) + (" …" if len(check.suspects) > 8 else "")
    if not is_number:
        cause = "the gradient itself is not a number: the loss overflowed or divided by zero"
    elif set(check.suspects) <= instrument.attached.late:
        cause = (
            "they required no gradient, or were not the optimizer's, when the probe was attached; "
            "attach once everything that is trained requires one"
        )
    elif not capture.attributed:
        cause = (
            "no tagged forward reached them: call probe.tag(agents) before every training "
            "forward, and do not untag() before it"
        )
    else:
        cause = (
            "either the parameter is used outside its own module (a fused head, F.linear on a "
            "weight), or a forward was not tagged, or gradients were changed by other than one "
            "common factor (clip_grad_value_, a norm per parameter or group, noise); exclude the "
            "parameter from training, tag every forward, clip by one norm, or read this policy's "
            "shares as covering the rest only"
        )
    failures = "".join(f"; module '{s}' {why}" for s, why in capture.failures.items())
    return (
        f"policy '{instrument.setup.policy}', step {step}: the agents' gradients leave "
        f"{check.residual:.2g} of the gradient unexplained (tolerance {check.tolerance:.0e}). Not "
        f"explained: {shown}: {cause}{failures}. The residual is in the record."
    )
