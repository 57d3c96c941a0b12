"""The deliberate API: five functions, and nothing else that a page has is one."""

from __future__ import annotations

import gradio as gr

from ui.studio import Studio


def add_to(demo: gr.Blocks, studio: Studio) -> None:
    """Registers the functions under /gradio_api/call/<name>."""

    def status(job: str) -> dict[str, object]:
        """How far a job is: its state, stage, step, steps, loss and failure."""
        return describe(studio, job)

    gr.api(status, api_name="status")


def describe(studio: Studio, id: str) -> dict[str, object]:
    job = studio.queue.get_job(id)
    done = job.progress
    return {
        "id": job.id,
        "title": job.title,
        "state": job.state,
        "step": done.step,
        "steps": done.steps,
        "loss": done.loss,
        "failure": None if job.failure is None else {"what": job.failure.what, "fix": job.failure.fix},
    }
