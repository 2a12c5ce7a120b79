"""The SDK: EdgeClient, PackageClient, connection or relay, state directory, quality floor."""
