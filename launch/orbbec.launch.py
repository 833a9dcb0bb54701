"""An Orbbec camera (Astra, Gemini, Femto) and the localizer: `ros2 launch dsac_ros orbbec.launch.py map:=ROOM.dsacmap`.

Driver: package orbbec_camera (OrbbecSDK_ROS2), whose launch file for the model is camera_model, such as astra, gemini2 or
gemini_330_series. It aligns depth to colour (depth_registration); both then are of one size. Their stamps may be some milliseconds apart:
where /diagnostics says that they do not pair, raise sync_slop in a params_file.
All arguments of localize.launch.py may be given too.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from dsac_ros.ros.dds import room_for_images

TOPICS = {'image_topic': '/camera/color/image_raw', 'depth_topic': '/camera/depth/image_raw',
          'camera_info_topic': '/camera/color/camera_info'}
DRIVER = {'depth_registration': 'true', 'enable_point_cloud': 'false'}


def generate_launch_description():
    """The driver, unless it runs already, and the localizer on its topics."""
    driver = [FindPackageShare('orbbec_camera'), '/launch/', LaunchConfiguration('camera_model'), '.launch.py']
    return LaunchDescription([
        DeclareLaunchArgument('map', description='Map bundle to localise in: path of a folder NAME.dsacmap'),
        # Declared before localize.launch.py declares them, with what the driver publishes; what is given goes through.
        *(DeclareLaunchArgument(name, default_value=value, description='As in localize.launch.py; default: that of the driver')
          for name, value in TOPICS.items()),
        # Before the driver starts: it is the one that sends the images.
        *(SetEnvironmentVariable(name, value) for name, value in room_for_images().items()),
        DeclareLaunchArgument('driver', default_value='true', choices=['true', 'false'],
                              description='Start the driver of the camera too; false where it runs already'),
        DeclareLaunchArgument('camera_model', default_value='astra', description='Launch file of orbbec_camera, without .launch.py'),
        # In a scope of its own: the driver has arguments of the same names, with other values.
        GroupAction([IncludeLaunchDescription(driver, launch_arguments=DRIVER.items())],
                    scoped=True, condition=IfCondition(LaunchConfiguration('driver'))),
        IncludeLaunchDescription(PathJoinSubstitution([FindPackageShare('dsac_ros'), 'launch', 'localize.launch.py'])),
    ])
