"""What a person looks at: snippets as text, figures as files."""
