"""What is measured in multi-agent RL training, and how it is kept."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily
from gradlab.shadowed import explain

__all__ = ["Agent", "Ask", "Message", "Reading", "RunStore", "attach", "open_run", "workflow"]

if TYPE_CHECKING:
    from gradlab.probe.probe import attach
    from gradlab.records import Agent
    from gradlab.store.run import open_run
    from gradlab.store.writer import RunStore
    from gradlab.workflows import Ask, Message, Reading, workflow
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "attach": "gradlab.probe.probe",
            "Agent": "gradlab.records",
            "open_run": "gradlab.store.run",
            "RunStore": "gradlab.store.writer",
            "workflow": "gradlab.workflows",
            "Ask": "gradlab.workflows",
            "Message": "gradlab.workflows",
            "Reading": "gradlab.workflows",
        },
    )

explain()
