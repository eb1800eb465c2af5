"""Whether results/ is what params.yaml and the recipes say."""
