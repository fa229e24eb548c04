"""Say which run a store holds, and refuse a store or a configuration that is not that run."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradlab.records import Agent, PolicyMeta, RunMeta
from gradlab.run_directory import STORE
from gradlab.store.disk import DOCUMENT, Document, StoreError, read_document
from gradlab.store.schema import METRIC_RECORDS, RETIRED, SCHEMA, SCHEMA_VERSION, GroupSpec, groups


def meta_document(meta: RunMeta) -> Document:
    """A `RunMeta` as JSON."""
    document: Document = {field.name: getattr(meta, field.name) for field in fields(meta)}
    document["roles"] = list(meta.roles)
    document["problems"] = list(meta.problems)
    if not meta.rates:
        del document["rates"]  # which older versions do not know
    for name, value in (
        ("frozen", list(meta.frozen)),
        ("models", dict(meta.models)),
        ("reward_components", list(meta.reward_components)),
    ):
        if value:
            document[name] = value
        else:
            del document[name]  # nor these
    document["routing"] = dict(meta.routing)
    document["versions"] = dict(meta.versions)
    document["policies"] = [
        {
            "name": policy.name,
            "agents": [[agent.role, agent.number] for agent in policy.agents],
            "blocks": list(policy.blocks),
            "num_parameters": policy.num_parameters,
            "mode": policy.mode,
            "sketch_buckets": policy.sketch_buckets,
            "sketch_seed": policy.sketch_seed,
            "effective": policy.effective,
        }
        for policy in meta.policies
    ]
    try:
        document["config"] = json.loads(json.dumps(dict(meta.config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"RunMeta: config cannot be kept as JSON ({error}); "
            f"give it strings, finite numbers, booleans, lists and mappings"
        ) from error
    return document


def parse_meta(document: Document) -> RunMeta:
    """The `RunMeta` that `meta_document` wrote, by this version or an earlier one.

    Raises `LaterVersionError` for fields that this version does not know.
    """
    _check_known("meta", document, RunMeta)
    for policy in document["policies"]:
        _check_known(f"policy '{policy['name']}'", policy, PolicyMeta)
    policies = tuple(
        PolicyMeta(
            name=policy["name"],
            agents=tuple(Agent(role, number) for role, number in policy["agents"]),
            blocks=tuple(policy["blocks"]),
            num_parameters=policy["num_parameters"],
            mode=policy.get("mode", "exact"),  # stores of before 0.2 do not say
            sketch_buckets=policy.get("sketch_buckets", 0),
            sketch_seed=policy.get("sketch_seed", 0),
            effective=policy.get("effective", ""),
        )
        for policy in document["policies"]
    )
    return RunMeta(
        **{
            **document,
            "policies": policies,
            "roles": tuple(document["roles"]),
            "problems": tuple(document["problems"]),
            "frozen": tuple(document.get("frozen", ())),
            "reward_components": tuple(document.get("reward_components", ())),
        }
    )


class LaterVersionError(ValueError):
    """Metadata has fields that this version does not know."""


def _check_known(what: str, document: Document, record: type[Any]) -> None:
    unknown = sorted(set(document) - {field.name for field in fields(record)})
    if unknown:
        raise LaterVersionError(f"{what} has {', '.join(unknown)}")


def root_attributes(meta: RunMeta) -> Document:
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "meta": meta_document(meta)}


def read_root(path: Path) -> tuple[RunMeta, Document]:
    """The run's metadata and all attributes of the root, after checking whose store it is."""
    if not path.exists():
        raise StoreError(f"no run store at {path}; give a run directory or its run.zarr")
    if not (path / DOCUMENT).exists():
        inside = sorted(found.parent for found in path.glob(f"*/{STORE}"))
        if inside:
            raise StoreError(
                f"{path} is a folder of {len(inside)} runs; give one of them, such as {inside[0]}, "
                f"or {path}/* where several are taken"
            )
        raise StoreError(
            f"{path} is not a run store: it has no {DOCUMENT}; "
            f"give a run directory (one that holds run.zarr) or the run.zarr itself. "
            f"Logs of other trainers become runs with gradlab import"
        )
    attributes = read_document(path)["attributes"]
    schema, version = attributes.get("schema"), str(attributes.get("schema_version"))
    if schema != SCHEMA:
        raise StoreError(
            f"{path} is a Zarr store of schema {schema!r}, expected {SCHEMA!r}; "
            f"it was not recorded by gradlab: open it with zarr or xarray"
        )
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise StoreError(
            f"{path} has schema version {version}, this gradlab reads {SCHEMA_VERSION}; "
            f"install the gradlab that wrote it"
        )
    try:
        meta = parse_meta(attributes["meta"])
    except LaterVersionError as error:
        wrote = attributes["meta"].get("versions", {}).get("gradlab", "it does not say which")
        raise StoreError(
            f"{path / DOCUMENT}: a later version wrote the run ({wrote}): {error}, which this "
            f"gradlab does not know; use that version, or a newer one"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path / DOCUMENT}: the run's metadata is damaged ({error!r}); restore it from a copy"
        ) from error
    return meta, attributes


def check_meta(meta: RunMeta) -> None:
    if not meta.roles:
        raise StoreError("RunMeta: roles is empty; name every role of the workflow")
    if "total" in meta.roles:
        raise StoreError("RunMeta: a role is named 'total', which means all agents; rename it")
    for policy in meta.policies:
        if not re.fullmatch(r"\w[\w.-]*", policy.name) or policy.name == DOCUMENT:
            raise StoreError(
                f"RunMeta: policy name '{policy.name}' cannot name a directory; "
                f"use letters, digits, '_', '-' and '.'"
            )
        for agent in policy.agents:
            if meta.policy_of(agent) != policy.name:
                raise StoreError(
                    f"RunMeta: policy '{policy.name}' has agent {agent}, but role '{agent.role}' "
                    f"is routed to {meta.policy_of(agent)!r}; expected '{policy.name}'"
                )
    if meta.rates and meta.problems:
        raise StoreError(
            f"RunMeta: rates is set, and {len(meta.problems)} problems are listed; evaluations are "
            f"kept by problem (leave rates out) or as rates (leave problems out)"
        )
    policies = tuple(policy.name for policy in meta.policies)
    for what, labels in [
        ("policies", policies),
        *(
            (f"groups '{spec.path}': {dim}", spec.labels[dim])
            for spec in groups(meta)
            for dim in spec.labels
        ),
    ]:
        if not labels:
            raise StoreError(f"RunMeta: {what} is empty; expected at least one")
        if len(set(labels)) < len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise StoreError(f"RunMeta: {what} has {twice} more than once; names must differ")


def check_same_run(path: Path, stored: RunMeta, meta: RunMeta) -> None:
    for name in (
        "workflow",
        "task",
        "model",
        "models",
        "roles",
        "routing",
        "frozen",
        "policies",
        "problems",
        "eval_samples",
        "rates",
        "reward_components",
    ):
        old, new = getattr(stored, name), getattr(meta, name)
        if old != new:
            raise StoreError(
                f"{path} was recorded with {name} {_short(old)}, this run has {_short(new)}; "
                f"resume with the configuration it was started with, or choose a new directory"
            )


def check_same_labels(path: Path, stored: GroupSpec, spec: GroupSpec) -> None:
    """Refuse a store of other labels; one that is too old to have some of the metrics will do."""
    for dim, labels in spec.labels.items():
        known = {*labels, *RETIRED.get(dim, ())}
        is_older = dim in METRIC_RECORDS and set(stored.labels[dim]) <= known
        if stored.labels[dim] != labels and not is_older:
            other = sorted(set(labels) ^ set(stored.labels[dim]))
            raise StoreError(
                f"{path / spec.path}: {dim} differs from this version's in {other or 'order'}; "
                f"resume with the gradlab that started the run, or start a new run"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
