import test from 'ava';
import { type DaemonConfig, daemonArguments, parseDaemonArguments } from '../../../src/daemon/config';

const config: DaemonConfig = {
  mountpoint: '/mnt/a b',
  source: 'imagefs:vm.qed',
  sources: [{ path: '/images/vm.qed' }],
  single: true,
  readOnly: true,
  threads: 4,
  threadsMax: 4,
  session: 'kernel',
  cacheSize: 1,
  backing: 'directory',
  growable: false,
  kernelCache: false,
  allowOther: false,
  forceShare: false,
  shareRw: false,
  flags: [],
  foreground: false,
  debug: false,
};

test('parseDaemonArguments() reads back what daemonArguments() wrote', (t) => {
  const words = [
    '/usr/bin/node',
    '/opt/imagefs/dist/src/daemon/main.js',
    ...daemonArguments(config, ['/images/vm.qed', '--']),
  ];
  t.deepEqual(parseDaemonArguments(words), {
    mountpoint: '/mnt/a b',
    session: 'kernel',
    readOnly: true,
    named: ['/images/vm.qed', '--'],
  });
});

test('parseDaemonArguments() does not take other programs for a daemon', (t) => {
  for (const words of [
    [],
    ['vi', 'imagefs-daemon'],
    ['grep', 'imagefs-daemon', '/mnt', 'kernel', 'rw', '--'],
    ['/usr/bin/node', '/opt/imagefs/dist/src/daemon/main.js'],
    ['/usr/bin/node', '/opt/imagefs/dist/src/daemon/main.js', 'imagefs-daemon', '/mnt'],
  ]) {
    t.is(parseDaemonArguments(words), undefined, words.join(' '));
  }
});
