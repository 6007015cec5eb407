"""The clock, the record and the report of a step, each made once and closed together."""
