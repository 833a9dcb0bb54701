"""Synthetic rooms: from seeds to Frames with exact depth and poses.

room (what stands where) uses furniture, pictures and textures (what it looks like) and lighting; rendering draws it; path carries a
camera through it; sensor spoils the picture a little; source puts them together.
"""
from dsac_ros.data.synthetic.sensor import SensorOptions
from dsac_ros.data.synthetic.source import SyntheticSource

__all__ = ['SensorOptions', 'SyntheticSource']
