"""Start the localizer: `ros2 launch dsac_ros localize.launch.py map:=ROOM.dsacmap image_topic:=/camera/color/image_raw ...`."""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from dsac_ros.ros.dds import room_for_images

# Parameters of the node that are arguments here: name, type, description. Left empty they stay as the params_file has them,
# so that the defaults have one owner (dsac_ros.config.NodeOptions). What is rarely changed is in the params_file alone.
PARAMETERS = (
    ('map', str, 'Map bundle to localise in: path of a folder NAME.dsacmap'),
    ('autostart', bool, 'Whether the node configures and activates itself: true, or false where a lifecycle manager does'),
    ('modality', str, 'What to localise with: rgb or rgbd'),
    ('image_topic', str, 'Colour images'),
    ('depth_topic', str, 'Depth images registered to the colour images; unused with modality rgb'),
    ('camera_info_topic', str, 'Intrinsics of the colour images'),
    ('device', str, 'Where the network runs: auto, cpu, cuda or cuda:N'),
    ('tf_mode', str, 'Transform that goes to tf: map_to_odom, map_to_base, map_to_camera or none'),
)
# Absolute in config/localize.rviz; remapped, they follow the namespace.
SHOWN = ('pose', 'localizer/frustum', 'localizer/path', 'localizer/inliers', 'localizer/experts', 'localizer/map_points',
         'localizer/debug_image', 'tf', 'tf_static')


def localizer(context):
    """The node, with the parameters file first and then the arguments that were given."""
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=kind)
             for name, kind, _ in PARAMETERS if LaunchConfiguration(name).perform(context)}
    given['use_sim_time'] = ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)
    return [Node(package='dsac_ros', executable='localizer', name='localizer', namespace=LaunchConfiguration('namespace'),
                 parameters=[LaunchConfiguration('params_file'), given],
                 # Relative, so that a namespace takes TF along, as in Nav2.
                 remappings=[('/tf', 'tf'), ('/tf_static', 'tf_static')],
                 arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
                 respawn=LaunchConfiguration('respawn').perform(context) == 'true', respawn_delay=1.0,
                 output='screen', emulate_tty=True)]


def generate_launch_description():
    """Arguments, then the node, then RViz where it is wanted."""
    share = FindPackageShare('dsac_ros')
    return LaunchDescription([
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node, its topics and tf'),
        DeclareLaunchArgument('params_file', default_value=PathJoinSubstitution([share, 'config', 'localize.yaml']),
                              description='YAML file with the parameters of the node'),
        DeclareLaunchArgument('use_sim_time', default_value='false', choices=['true', 'false'],
                              description='Follow /clock, as for `ros2 bag play --clock`'),
        DeclareLaunchArgument('respawn', default_value='false', choices=['true', 'false'],
                              description='Start the node again, 1 s after it has ended for whatever reason'),
        DeclareLaunchArgument('rviz', default_value='false', choices=['true', 'false'], description='Start RViz with config/localize.rviz'),
        DeclareLaunchArgument('log_level', default_value='info', choices=['debug', 'info', 'warn', 'error', 'fatal'],
                              description='Least severity that is logged'),
        *(DeclareLaunchArgument(name, default_value='', description=f'{text} (empty: as in params_file)') for name, _, text in PARAMETERS),
        *(SetEnvironmentVariable(name, value) for name, value in room_for_images().items()),
        OpaqueFunction(function=localizer),
        Node(package='rviz2', executable='rviz2', name='rviz', namespace=LaunchConfiguration('namespace'),
             condition=IfCondition(LaunchConfiguration('rviz')),
             arguments=['-d', PathJoinSubstitution([share, 'config', 'localize.rviz'])],
             parameters=[{'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)}],
             remappings=[(f'/{name}', name) for name in SHOWN], output='log'),
    ])
