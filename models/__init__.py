"""What produces the input models: architectures (zoo), data sets (data) and trainers (training). Imports none of the other packages."""
