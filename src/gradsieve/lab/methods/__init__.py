"""The methods that runs compare, each written as a line of text."""
