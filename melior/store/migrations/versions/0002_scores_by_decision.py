"""scores say what each decision earned, where a grader can tell"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Scores of before told decisions apart nowhere: NULL."""
    op.add_column("scores", sa.Column("decisions", sa.LargeBinary))
