"""How the tables became what they are: one module a revision, run by Alembic out of the installed package."""
