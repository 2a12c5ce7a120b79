"""One SQL database of what happened; the only folder that may import sqlalchemy."""
