"""A plain federated LoRA app: sentiment in four domains, one domain a client. Nothing in here knows about compression."""
