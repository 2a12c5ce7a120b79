"""What Alembic runs for each command: it works on the connection that `upgrade` hands it, inside that connection's transaction."""

from alembic import context

from compeft_server.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
