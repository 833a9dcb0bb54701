"""A USB camera and the localizer: `ros2 launch dsac_ros usb_camera.launch.py map:=ROOM.dsacmap camera_info_url:=file:///CALIBRATION.yaml`.

Driver: package usb_cam. The camera has to be calibrated (package camera_calibration) at the size of its images; without a calibration every
frame is refused (bad_camera_info). Fix its focus and, where you can, its exposure.
All arguments of localize.launch.py may be given too.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from dsac_ros.ros.dds import room_for_images

TOPICS = {'image_topic': '/camera/image_raw', 'camera_info_topic': '/camera/camera_info', 'modality': 'rgb'}


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
        DeclareLaunchArgument('video_device', default_value='/dev/video0', description='The camera'),
        DeclareLaunchArgument('camera_info_url', default_value='', description='URL of its calibration, as in file:///home/me/camera.yaml'),
        Node(package='usb_cam', executable='usb_cam_node_exe', name='usb_cam', namespace='/camera', output='screen',
             parameters=[{'video_device': LaunchConfiguration('video_device'), 'camera_info_url': LaunchConfiguration('camera_info_url'),
                          'image_width': 640, 'image_height': 480, 'framerate': 30.0, 'frame_id': 'camera_optical_frame'}],
             condition=IfCondition(LaunchConfiguration('driver'))),
        IncludeLaunchDescription(PathJoinSubstitution([FindPackageShare('dsac_ros'), 'launch', 'localize.launch.py'])),
    ])
