"""`lmworks <verb>`: parse, build configurations, call one public function. Knows no logic."""
