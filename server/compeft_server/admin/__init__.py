"""What the operator does on the aggregator's machine: policy, lineage, rollback, backup, restore, garbage collection, health."""
