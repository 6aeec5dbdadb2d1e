"""Documents that hold items of evaluation sets: found, dropped or cut, and reported by item."""
