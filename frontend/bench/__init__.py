"""`maxsimd bench`: a load generator that needs neither torch nor numpy."""
