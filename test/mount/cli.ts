/** Real mounts through the built command, each in a directory of its own, taken down also when a test fails. */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { ExecutionContext } from 'ava';
import { detachMount, removeDirectory } from '../../scripts/leftovers';
import type { DaemonConfig } from '../../src/daemon/config';
import type { LaunchedDaemon } from '../../src/daemon/launch';
import { isInside, MountTable } from '../../src/daemon/mountinfo';
import { type DaemonProcess, daemonOf, findDaemons } from '../../src/daemon/processes';
import { BlockError } from '../../src/errors';
import { unmount } from '../../src/fuse/unmount';

/** The project's directory, seen from dist/test/mount. */
export const PROJECT = path.resolve(__dirname, '../../..');
export const IMAGEFS = path.join(PROJECT, 'bin/imagefs');

/** When a program counts as hanging. Generous: the machine may be busy with other tests. */
export const HANG_MS = 60_000;

export interface Result {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  cwd?: string;
  uid?: number;
  gid?: number;
  env?: NodeJS.ProcessEnv;
  /** When it counts as hanging, if not after HANG_MS. */
  hangMs?: number;
}

/** Runs a program without standard input to its end. It is killed when it hangs. */
export function run(program: string, args: string[], options: RunOptions = {}): Promise<Result> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      ...options,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: options.hangMs ?? HANG_MS,
      killSignal: 'SIGKILL',
    });
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (data: Buffer) => (output.stdout += data.toString()));
    child.stderr.on('data', (data: Buffer) => (output.stderr += data.toString()));
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code, signal, ...output }));
  });
}

export function imagefs(args: string[], options: RunOptions = {}): Promise<Result> {
  return run(process.execPath, [IMAGEFS, ...args], options);
}

/** A directory for one test. Whatever is mounted in it at the end is taken down, and then it is removed. */
export function workspace(t: ExecutionContext): string {
  const directory = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-')));
  t.teardown(() => {
    takeDown(directory);
    removeDirectory(directory);
  });
  return directory;
}

/** Kills the daemons of all mounts below and detaches them, newest first. Needs nothing of what is tested to work. */
function takeDown(directory: string): void {
  const table = MountTable.read();
  const daemons = findDaemons();
  for (const daemon of daemons.filter(({ mountpoint }) => isInside(mountpoint, directory))) kill(daemon.pid);
  for (const entry of table.entries.reverse()) {
    if (isInside(entry.mountpoint, directory)) detachMount(entry.mountpoint);
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Ended meanwhile.
  }
}

/** An empty directory in the workspace. */
export function directory(workspaceDirectory: string, name = 'mnt'): string {
  const made = path.join(workspaceDirectory, name);
  fs.mkdirSync(made);
  return made;
}

/** Makes an image with the command. */
export async function createImage(
  t: ExecutionContext,
  file: string,
  size: string | undefined,
  options: string[] = [],
): Promise<string> {
  const format = path.extname(file) === '.qed' ? 'qed' : 'raw';
  const result = await imagefs(['create', '-f', format, ...options, file, ...(size === undefined ? [] : [size])]);
  t.is(result.code, 0, result.stderr);
  return file;
}

/** Mounts; the test fails at once when that does not work. */
export async function mount(t: ExecutionContext, args: string[], options: RunOptions = {}): Promise<DaemonProcess> {
  const result = await imagefs(['mount', ...args], options);
  t.deepEqual([result.code, result.stderr], [0, '']);
  return daemonAt(t, args.at(-1) ?? '');
}

/** For `launchDaemon`: what `imagefs mount IMAGE MOUNTPOINT` would say, with few threads and little memory. */
export function daemonConfig(image: string, mountpoint: string, settings: Partial<DaemonConfig> = {}): DaemonConfig {
  return {
    mountpoint,
    source: 'imagefs:test',
    sources: [{ path: image }],
    single: true,
    readOnly: false,
    threads: 4,
    threadsMax: 4,
    session: 'kernel',
    cacheSize: 4 * 1024 * 1024,
    backing: 'directory',
    growable: false,
    kernelCache: false,
    allowOther: false,
    forceShare: false,
    shareRw: false,
    flags: [],
    foreground: false,
    debug: false,
    ...settings,
  };
}

/** The exit code. A detached daemon alone would not keep this process waiting. */
export async function endOf(daemon: LaunchedDaemon): Promise<number> {
  const wait = setInterval(() => {}, 60_000);
  try {
    return await daemon.ended;
  } finally {
    clearInterval(wait);
  }
}

/** Unmounts. Somebody else who looks at all mounts (df, imagefs list) keeps one busy for a moment; nobody may do so for long. */
export async function letGo(mountpoint: string): Promise<void> {
  for (let pause = 5; ; pause *= 2) {
    try {
      return await unmount(mountpoint, { lazy: false });
    } catch (error) {
      if (!(error instanceof BlockError && error.code === 'BUSY') || pause > 10_000) throw error;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

/** The process that serves a mountpoint. */
export function daemonAt(t: ExecutionContext, mountpoint: string): DaemonProcess {
  const entry = MountTable.read().find(mountpoint);
  const daemon = entry === undefined ? undefined : daemonOf(entry, findDaemons());
  if (daemon === undefined) {
    t.fail(`nothing serves ${mountpoint}`);
    throw new Error('unreachable');
  }
  return daemon;
}

export function isMounted(mountpoint: string): boolean {
  return MountTable.read().find(mountpoint) !== undefined;
}

/** Waits for something that nobody announces. Fails the test when it does not come. */
export async function until(t: ExecutionContext, what: string, condition: () => boolean): Promise<void> {
  for (let waited = 0; !condition(); waited += 20) {
    if (waited > HANG_MS) t.fail(`never came: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A worker of the daemon practises: only for mounts that it does so for (src/daemon/warm-up.ts). Source: proc_pid_io(5), wchar */
export function beginsWarmUp(t: ExecutionContext, pid: number): Promise<void> {
  const written = () => Number(/^wchar: (\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]);
  return until(t, 'the beginning of the warm-up', () => written() > 1024 * 1024);
}

/** It does so no more: from now on the process does only what it is asked for. */
export async function warmedUp(t: ExecutionContext, pid: number): Promise<void> {
  await beginsWarmUp(t, pid);
  const isOfWarmUp = (fd: string): boolean => {
    try {
      return fs.readlinkSync(`/proc/${pid}/fd/${fd}`).includes('warm-up');
    } catch {
      return false; // Closed meanwhile.
    }
  };
  await until(t, 'the end of the warm-up', () => !fs.readdirSync(`/proc/${pid}/fd`).some(isOfWarmUp));
}

/** Can the image be opened for writing again, by us as by anybody else? */
export async function assertFree(t: ExecutionContext, image: string): Promise<void> {
  const result = await imagefs(['check', image]);
  t.is(result.code, 0, `${result.stdout}${result.stderr}`);
  t.notRegex(result.stdout + result.stderr, /cleanly|lock/i);
}

/** A process that the test ends with; `ready` is printed by it. */
export async function holder(t: ExecutionContext, script: string, options: RunOptions = {}): Promise<ChildProcess> {
  const child = spawn(process.execPath, ['-e', `${script}; console.log('ready'); setInterval(() => {}, 1e6)`], {
    ...options,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await new Promise((resolve) => child.stdout?.once('data', resolve));
  return child;
}

/** True when the test may go on; otherwise it says why not, and fails where everything must run. */
export function required(t: ExecutionContext, condition: boolean, reason: string): boolean {
  if (condition) return true;
  t.log(`not run: ${reason}`);
  if (process.env.IMAGEFS_REQUIRE_ALL === '1') t.fail(reason);
  else t.pass();
  return false;
}

export function isRoot(): boolean {
  return process.getuid?.() === 0;
}
