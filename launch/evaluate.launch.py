"""Replay a bag through the live node and measure: `ros2 launch dsac_ros evaluate.launch.py map:=ROOM.dsacmap bag:=BAG`.

`dsac-ros evaluate --live` starts the node itself and stops it; this only makes it known to launch. Ends when it has ended.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

# Arguments that become flags of `dsac-ros evaluate` when they are not empty.
FLAGS = (
    ('out', 'Results folder; empty: results/MAP_SOURCE_SPLIT_MODALITY in the current folder'),
    ('split', 'Part of a data folder: a name in its splits.json'),
    ('modality', 'What the localizer may see: auto, rgb or rgbd'),
    ('device', 'Where the network runs: auto, cpu, cuda or cuda:N'),
    ('rate', 'Speed of the replay as a multiple of true time'),
)


def evaluation(context):
    """The command, with the flags that were given."""
    command = [ExecutableInPackage(executable='dsac-ros', package='dsac_ros'), 'evaluate',
               LaunchConfiguration('map'), LaunchConfiguration('bag')]
    if LaunchConfiguration('live').perform(context) == 'true':
        command.append('--live')
    if LaunchConfiguration('overwrite').perform(context) == 'true':
        command.append('--overwrite')
    for name, _ in FLAGS:
        if LaunchConfiguration(name).perform(context):
            command += [f'--{name}', LaunchConfiguration(name)]
    return [ExecuteProcess(cmd=command, name='evaluate', output='screen', emulate_tty=True, on_exit=Shutdown(reason='evaluation ended'))]


def generate_launch_description():
    """Arguments, then the process."""
    return LaunchDescription([
        DeclareLaunchArgument('map', description='Map bundle to evaluate: path of a folder NAME.dsacmap'),
        DeclareLaunchArgument('bag', description='Bag or data folder with reference poses'),
        DeclareLaunchArgument('live', default_value='true', choices=['true', 'false'],
                              description='Play the bag over DDS to the real node (true) or localise every frame offline (false)'),
        DeclareLaunchArgument('overwrite', default_value='false', choices=['true', 'false'],
                              description='Replace older results in the results folder'),
        *(DeclareLaunchArgument(name, default_value='', description=text) for name, text in FLAGS),
        OpaqueFunction(function=evaluation),
    ])
