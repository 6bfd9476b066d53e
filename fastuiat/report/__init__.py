"""Pages that show what runs and measurements came to; knows files, no nets and no data."""
