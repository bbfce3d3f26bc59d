"""Templates and cluster profiles that come with mmlaunch."""
