"""In which order an interactive session's prompts came, for servers that share a database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "click_orders",
        sa.Column("whose", sa.String(32), primary_key=True),
        sa.Column("histories", sa.JSON, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
    )
    op.create_index("click_orders_used", "click_orders", ["used"])
