"""The run folder, the processes of a run, and scores from stored evidence."""
