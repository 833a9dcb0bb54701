"""Learned camera localisation for ROS 2: scene coordinates, NG-RANSAC, ESAC gating."""

__version__ = '0.1.0'
