"""A job as it is told over HTTP and to webhooks. Pure."""

from __future__ import annotations

from typing import Any

from server.jobs.job import Job


def as_job(job: Job) -> dict[str, Any]:
    """The wire form (`server.http.job_models.JobAnswer`); what there is nothing to say about is left out."""
    told: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "cancel_requested": True if job.stop == "cancelled" and not job.over else None,
        "items": {
            "total": job.total,
            "done": job.done,
            "failed": job.failed,
            "cancelled": job.cancelled,
            "pending": job.total - job.done - job.failed - job.cancelled,
        },
        "progress": round((job.done + job.failed + job.cancelled) / job.total, 4),
        "usage": dict(job.usage),
        "cost_usd": job.cost_usd,
        "created_at": job.created_ms // 1000,
        "ended_at": None if job.ended_ms is None else job.ended_ms // 1000,
        "deadline_at": job.deadline_ms // 1000,
        "expires_at": None if job.ended_ms is None else (job.ended_ms + job.keep_ms) // 1000,
        "webhook": None if job.webhook is None else {"url": job.webhook.url, "state": job.webhook.state},
    }
    return {name: value for name, value in told.items() if value is not None}
