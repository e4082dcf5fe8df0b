"""The exercises, a module for each chapter: what is asked, and what each typical mistake means."""
