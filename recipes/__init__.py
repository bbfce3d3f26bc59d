"""Recipes that come with mmlaunch."""
