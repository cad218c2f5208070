"""What Alembic runs for every command: our connection, in our transaction."""

from alembic import context

from lookalike.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
