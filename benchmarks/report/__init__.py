"""What a run gives: typed records, their JSON schema, Markdown, HTML, comparison and merging."""
