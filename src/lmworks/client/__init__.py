"""Models behind other people's endpoints, as generators. Knows no server of ours."""
