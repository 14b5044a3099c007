set -e
inc=$(.venv/bin/python -c "import sysconfig;print(sysconfig.get_paths()['include'])")
site=$(.venv/bin/python -c "import sysconfig;print(sysconfig.get_paths()['platlib'])")
for k in _cpu _cpu_v3; do
  m=""; [ $k = _cpu_v3 ] && m="-march=x86-64-v3"
  g++ -std=c++17 -O3 -DNDEBUG -fPIC -shared -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -I$inc -DRMSPROP_INIT=PyInit_$k $m src/rmsprop/kernels/cpu.cpp -o /tmp/h/$k.so -pthread &
done
wait
for k in _cpu _cpu_v3; do mv /tmp/h/$k.so $site/rmsprop/kernels/$k.abi3.so; done
