/**
 * fusermount3(1), the setuid program that mounts and unmounts for everybody who is not root; `fusermount` is its name in fuse 2.
 * Always run without a shell: a mountpoint may have any name.
 */
import { execFile, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { BlockError, hostError } from '../errors';
import { receiveDescriptor, socketPair } from '../system/socket';
import { ALLOW_OTHER_HINT, FUSE_DEVICE, mountAction } from './preconditions';

const PROGRAMS = ['fusermount3', 'fusermount'] as const;

/** Descriptor number, in fusermount3, of the socket over which it sends /dev/fuse. */
const SOCKET_IN_CHILD = 3;

interface Outcome {
  succeeded: boolean;
  /** Its own words, without its name. */
  words: string;
}

/** Nothing but what it takes to find the program. English words: they are compared below and quoted in messages. */
function environment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH, LC_ALL: 'C', ...more };
}

/** `fusermount3: mount failed: Operation not permitted` becomes `mount failed: Operation not permitted`. */
function wordsOf(stderr: string): string {
  return stderr
    .split('\n')
    .map((line) => line.replace(/^\S*fusermount3?: /, '').trim())
    .filter((line) => line !== '')
    .join('; ');
}

function missing(action: string): BlockError {
  const message = `${action}: fusermount3 was not found; install the package fuse3 ("apt install fuse3" on Debian)`;
  return new BlockError('NOT_FOUND', message);
}

/** @param socket what the program finds as descriptor 3; undefined for none */
function runSync(args: string[], action: string, socket?: number): Outcome {
  for (const program of PROGRAMS) {
    const result = spawnSync(program, args, {
      stdio: ['ignore', 'ignore', 'pipe', ...(socket === undefined ? [] : [socket])],
      env: environment(socket === undefined ? {} : { _FUSE_COMMFD: String(SOCKET_IN_CHILD) }),
      encoding: 'utf8',
    });
    if ((result.error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') continue;
    if (result.error !== undefined) throw new BlockError('IO', `${action}: ${result.error.message}`);
    return { succeeded: result.status === 0, words: wordsOf(result.stderr) || `${program} failed` };
  }
  throw missing(action);
}

/**
 * Mounts and returns the descriptor of /dev/fuse.
 * @param options comma-separated, values escaped
 */
export function fusermountMount(mountpoint: string, options: string): number {
  const action = mountAction(mountpoint);
  const [ours, theirs] = openPair(action);
  try {
    let outcome: Outcome;
    try {
      outcome = runSync(['-o', options, '--', mountpoint], action, theirs);
    } finally {
      // With our copy of its end open, receiving would wait for ever when it sends nothing.
      fs.closeSync(theirs);
    }
    if (!outcome.succeeded) throw mountRefused(action, mountpoint, outcome.words);
    return takeDescriptor(ours, mountpoint, action);
  } finally {
    fs.closeSync(ours);
  }
}

/** The program has ended: its message waits in the socket. */
function takeDescriptor(socket: number, mountpoint: string, action: string): number {
  try {
    return receiveDescriptor(socket);
  } catch (error) {
    // Mounted, and nobody can serve it (no descriptor is left in this process, for one).
    fusermountDetach(mountpoint, action);
    throw hostError(error, `${action}: cannot receive ${FUSE_DEVICE} from fusermount3`, { path: mountpoint });
  }
}

function openPair(action: string): [number, number] {
  try {
    return socketPair();
  } catch (error) {
    throw hostError(error, action);
  }
}

function mountRefused(action: string, mountpoint: string, words: string): BlockError {
  const hint = words.includes('allow_other') ? `; ${ALLOW_OTHER_HINT}` : '';
  return new BlockError('DENIED', `${action}: fusermount3: ${words}${hint}`, { path: mountpoint });
}

function unmountArguments(mountpoint: string, lazy: boolean): string[] {
  return ['-u', ...(lazy ? ['-z'] : []), '--', mountpoint];
}

export function unmountRefused(action: string, mountpoint: string, words: string): BlockError {
  const context = { path: mountpoint };
  if (/busy/i.test(words)) return new BlockError('BUSY', `${action}: it is in use`, context);
  if (/not found in|not mounted|Invalid argument|No such file/i.test(words)) {
    return new BlockError('NOT_FOUND', `${action}: nothing of yours is mounted there`, context);
  }
  return new BlockError('DENIED', `${action}: fusermount3: ${words}`, context);
}

/** @param action `Cannot unmount "/mnt/vm"` */
export async function fusermountUnmount(mountpoint: string, lazy: boolean, action: string): Promise<void> {
  for (const program of PROGRAMS) {
    const outcome = await runUnmount(program, unmountArguments(mountpoint, lazy));
    if (outcome === undefined) continue;
    if (!outcome.succeeded) throw unmountRefused(action, mountpoint, outcome.words);
    return;
  }
  throw missing(action);
}

function runUnmount(program: string, args: string[]): Promise<Outcome | undefined> {
  return new Promise((resolve) => {
    execFile(program, args, { env: environment() }, (error, _stdout, stderr) => {
      if (error?.code === 'ENOENT') resolve(undefined);
      else resolve({ succeeded: error === null, words: wordsOf(stderr) || `${program} failed` });
    });
  });
}

/** Lazily, and without waiting for anything that this process would have to serve. */
export function fusermountDetach(mountpoint: string, action: string): void {
  const outcome = runSync(unmountArguments(mountpoint, true), action);
  if (!outcome.succeeded) throw unmountRefused(action, mountpoint, outcome.words);
}
