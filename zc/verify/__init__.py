"""The verifier, on by default after every pass."""

from zc.verify.agreement import PlanEntry, check_agreement, communication_plan
from zc.verify.verifier import verify

__all__ = ["PlanEntry", "check_agreement", "communication_plan", "verify"]
