"""Counts for dashboards, from a database view in which nobody is named."""

from __future__ import annotations

from datetime import date

from sqlalchemy import BigInteger, Date, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Model, Protected


class Figure(Protected, Model):
    """How many of something there were in a branch on a day. Read from the view `figure`; nothing writes it."""

    __tablename__ = "figure"
    __table_args__ = {"info": {"view": True}}  # noqa: RUF012  (SQLAlchemy reads it from the class)
    kind_key = "name"

    name: Mapped[str] = mapped_column(String, primary_key=True)
    """registrations, unidentified, visits (30 days); staff, rooms (now); looks, refusals (24 hours)."""
    branch_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """0 where it is of no branch."""
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


__all__ = ["Figure"]
