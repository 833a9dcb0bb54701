"""A RealSense D435 (D415, D455) and the localizer: `ros2 launch dsac_ros realsense.launch.py map:=ROOM.dsacmap`.

Driver: package realsense2_camera, 4.55 or later (earlier ones publish on /camera/color/... instead of /camera/camera/color/...). Depth is
aligned to colour by the driver, hence the two have one stamp and one size.
All arguments of localize.launch.py may be given too.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from dsac_ros.ros.dds import room_for_images

CAMERA = '/camera/camera'
TOPICS = {'image_topic': f'{CAMERA}/color/image_raw', 'depth_topic': f'{CAMERA}/aligned_depth_to_color/image_raw',
          'camera_info_topic': f'{CAMERA}/color/camera_info'}
DRIVER = {'align_depth.enable': 'true', 'enable_sync': 'true', 'rgb_camera.color_profile': '640x480x30',
          'depth_module.depth_profile': '640x480x30'}


def generate_launch_description():
    """The driver, unless it runs already, and the localizer on its topics."""
    return LaunchDescription([
        DeclareLaunchArgument('map', description='Map bundle to localise in: path of a folder NAME.dsacmap'),
        # Declared before localize.launch.py declares them, with what the driver publishes; what is given goes through.
        *(DeclareLaunchArgument(name, default_value=value, description='As in localize.launch.py; default: that of the driver')
          for name, value in TOPICS.items()),
        # Before the driver starts: it is the one that sends the images.
        *(SetEnvironmentVariable(name, value) for name, value in room_for_images().items()),
        DeclareLaunchArgument('driver', default_value='true', choices=['true', 'false'],
                              description='Start the driver of the camera too; false where it runs already'),
        # In a scope of its own: the driver has arguments of the same names, with other values.
        GroupAction([IncludeLaunchDescription(PathJoinSubstitution([FindPackageShare('realsense2_camera'), 'launch', 'rs_launch.py']),
                                              launch_arguments=DRIVER.items())],
                    scoped=True, condition=IfCondition(LaunchConfiguration('driver'))),
        IncludeLaunchDescription(PathJoinSubstitution([FindPackageShare('dsac_ros'), 'launch', 'localize.launch.py'])),
    ])
