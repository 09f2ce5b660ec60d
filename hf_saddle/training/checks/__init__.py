"""What a training may not have if its model is to grow, found before the first step."""
