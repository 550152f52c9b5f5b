import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { busyMessage, describeHolder, findHolders } from '../../../src/daemon/holders';
import type { MountEntry } from '../../../src/daemon/mountinfo';
import { MountTable } from '../../../src/daemon/mountinfo';

/** A directory that stands for a mountpoint: holders are found by names, so no file system need be mounted. */
function pretendedMount(t: ExecutionContext): MountEntry {
  const mountpoint = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-')));
  t.teardown(() => fs.rmSync(mountpoint, { recursive: true }));
  const device = fs.statSync(mountpoint).dev;
  // Old encoding of small device numbers: 8 bits minor, then major.
  const [major, minor] = [Math.floor(device / 256), device % 256];
  return {
    id: 1,
    parent: 0,
    device: `${major}:${minor}`,
    mountpoint,
    options: [],
    type: 'fuse.imagefs',
    source: 'imagefs:x',
    superOptions: [],
  };
}

/** Starts a process that says when it is ready, and ends with the test. */
async function holder(t: ExecutionContext, cwd: string, script: string): Promise<number> {
  return started(t, cwd, process.execPath, ['-e', `${script}; console.log('ready'); setInterval(() => {}, 1e6)`]);
}

async function started(t: ExecutionContext, cwd: string, program: string, args: string[]): Promise<number> {
  const child = spawn(program, args, { cwd });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return child.pid ?? 0;
}

test('findHolders() names working directory and open files of a process, each once', async (t) => {
  const mount = pretendedMount(t);
  const file = path.join(mount.mountpoint, 'disk');
  fs.writeFileSync(file, 'x');
  const script = `fs.openSync('disk'); fs.openSync('disk')`;
  const pid = await holder(t, mount.mountpoint, script);
  const holders = findHolders(mount);
  t.deepEqual(holders, [{ kind: 'process', pid, command: 'node', uses: ['working directory', `"${file}" open`] }]);
  t.is(
    busyMessage(mount, MountTable.read()),
    `Cannot unmount "${mount.mountpoint}": in use by node (pid ${pid}: working directory, "${file}" open)`,
  );
});

test('findHolders() gives the name of the program where a process calls itself MainThread', async (t) => {
  const mount = pretendedMount(t);
  const pid = await started(t, mount.mountpoint, 'bash', ['-c', 'echo MainThread >/proc/self/comm; echo ready; read']);
  t.deepEqual(findHolders(mount), [{ kind: 'process', pid, command: 'bash', uses: ['working directory'] }]);
});

test('findHolders() leaves out directories whose name only begins the same', async (t) => {
  const mount = pretendedMount(t);
  const neighbour = `${mount.mountpoint}2`;
  fs.mkdirSync(neighbour);
  t.teardown(() => fs.rmSync(neighbour, { recursive: true }));
  await holder(t, neighbour, '');
  t.deepEqual(findHolders(mount), []);
});

test('findHolders() names mounts inside', (t) => {
  const mount = pretendedMount(t);
  const text = `9 1 0:9 / ${mount.mountpoint}/sub rw - tmpfs none rw\n`;
  t.deepEqual(findHolders(mount, new MountTable(text)), [
    { kind: 'mount', mountpoint: `${mount.mountpoint}/sub`, type: 'tmpfs' },
  ]);
});

test('describeHolder() names loop devices and what is mounted from them', (t) => {
  t.is(
    describeHolder({ kind: 'loop', device: '/dev/loop3', file: '/mnt/vm/disk', mountedAt: ['/mnt/guest'] }),
    'loop device /dev/loop3 (over "/mnt/vm/disk", mounted at "/mnt/guest")',
  );
  t.is(
    describeHolder({ kind: 'loop', device: '/dev/loop3', file: '/mnt/vm/disk', mountedAt: [] }),
    'loop device /dev/loop3 (over "/mnt/vm/disk")',
  );
});
