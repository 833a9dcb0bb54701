"""Start the finetuner: `ros2 launch dsac_ros finetune.launch.py map:=ROOM.dsacmap bags:="[DRIVE]" out:=BETTER.dsacmap ...`."""
from typing import List  # launch knows no other list  # noqa: UP035

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# Parameters of the node that are arguments here: name, type, description. Left empty they stay as the params_file has them,
# so that the defaults have one owner (dsac_ros.config.FinetunerOptions, FinetuningOptions).
PARAMETERS = (
    ('map', str, 'Map bundle to start from: path of a folder NAME.dsacmap'),
    ('bags', List[str], 'Bags or data folders with poses in the frame of the map: [DRIVE, OTHER_DRIVE]'),  # noqa: UP006
    ('out', str, 'Map bundle to write'),
    ('overwrite', bool, 'Whether a map at out is replaced: true or false'),
    ('autostart', bool, 'Whether it trains at once: true, or false to wait for ~/start'),
    ('localizer', str, 'Name of the localizer that is told to load the finished map'),
    ('device', str, 'Where it trains: auto, cpu, cuda or cuda:N'),
    ('threads', int, 'CPU threads of the training'),
    ('nice', int, 'How much the training stands back behind other processes, 0 to 19'),
    ('training.modality', str, 'What the map is trained to be localised with: rgb or rgbd'),
    ('training.minutes', float, 'Time of training'),
    ('training.iterations', int, 'Steps to train, in place of the time'),
    ('training.learning_rate', float, 'Peak of the learning rate'),
    ('source.split', str, 'Part of a data folder: a name in its splits.json'),
)


def finetuner(context):
    """The node, with the parameters file first and then the arguments that were given."""
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=kind)
             for name, kind, _ in PARAMETERS if LaunchConfiguration(name).perform(context)}
    return [Node(package='dsac_ros', executable='finetuner', name='finetuner', namespace=LaunchConfiguration('namespace'),
                 parameters=[LaunchConfiguration('params_file'), given],
                 arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
                 output='screen', emulate_tty=True)]


def generate_launch_description():
    """Arguments, then the node."""
    params_file = PathJoinSubstitution([FindPackageShare('dsac_ros'), 'config', 'finetune.yaml'])
    return LaunchDescription([
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics'),
        DeclareLaunchArgument('params_file', default_value=params_file, description='YAML file with the parameters of the node'),
        DeclareLaunchArgument('log_level', default_value='info', choices=['debug', 'info', 'warn', 'error', 'fatal'],
                              description='Least severity that is logged'),
        *(DeclareLaunchArgument(name, default_value='', description=f'{text} (empty: as in params_file)') for name, _, text in PARAMETERS),
        OpaqueFunction(function=finetuner),
    ])
