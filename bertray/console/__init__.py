"""What a person sees: progress that is true, and a summary to read; a file a job."""
