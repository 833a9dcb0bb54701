"""Start the localizer: `ros2 launch dsac_ros localize.launch.py map:=ROOM.dsacmap image_topic:=/camera/color/image_raw ...`."""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Parameters of the node that are arguments here: name, type, description. Left empty they stay as the params_file has them,
# so that the defaults have one owner (dsac_ros.config.NodeOptions).
PARAMETERS = (
    ('map', str, 'Map bundle to localise in: path of a folder NAME.dsacmap'),
    ('autostart', bool, 'Whether the node configures and activates itself: true, or false where a lifecycle manager does'),
    ('modality', str, 'What to localise with: rgb or rgbd'),
    ('image_topic', str, 'Colour images'),
    ('image_compressed', bool, 'Whether the colour images are sensor_msgs/CompressedImage: true or false'),
    ('depth_topic', str, 'Depth images registered to the colour images; unused with modality rgb'),
    ('depth_compressed', bool, 'Whether the depth images are sensor_msgs/CompressedImage: true or false'),
    ('camera_info_topic', str, 'Intrinsics of the colour images'),
    ('device', str, 'Where the network runs: auto, cpu, cuda or cuda:N'),
    ('map_frame', str, 'Frame that poses are in; by default the one that the map names'),
    ('tf_mode', str, 'Transform that goes to tf: map_to_odom, map_to_base, map_to_camera or none'),
    ('tf_child_frame', str, 'Child frame of that transform'),
)


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
                 output='screen', emulate_tty=True)]


def generate_launch_description():
    """Arguments, then the node."""
    params_file = PathJoinSubstitution([FindPackageShare('dsac_ros'), 'config', 'localize.yaml'])
    return LaunchDescription([
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node, its topics and tf'),
        DeclareLaunchArgument('params_file', default_value=params_file, description='YAML file with the parameters of the node'),
        DeclareLaunchArgument('use_sim_time', default_value='false', choices=['true', 'false'],
                              description='Follow /clock, as for `ros2 bag play --clock`'),
        DeclareLaunchArgument('log_level', default_value='info', choices=['debug', 'info', 'warn', 'error', 'fatal'],
                              description='Least severity that is logged'),
        *(DeclareLaunchArgument(name, default_value='', description=f'{text} (empty: as in params_file)') for name, _, text in PARAMETERS),
        OpaqueFunction(function=localizer),
    ])
