/** Starts `server.ts` for a test and cleans up after it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import * as readline from 'node:readline';
import type { ExecutionContext } from 'ava';
import { detachMount } from '../../scripts/leftovers';
import { requirePackage } from '../../src/fuse/native/session';
import type { MountOptions, SessionKind } from '../../src/fuse/session';
import type { EventCounts } from './memory-filesystem';
import type { ServerAnswer, ServerRequest } from './server';

export const NOBODY = 65534;

/** Where cleaning up can be registered: a test, or a list of a whole file. */
export interface Scope {
  teardown(undo: () => void | Promise<void>): void;
}

export interface ServerOptions extends Partial<Omit<MountOptions, 'mountpoint'>> {
  session: SessionKind;
  threads?: number;
  onDisk?: boolean;
  maskInitFlags?: number;
  uid?: number;
  /** An own folder by default. */
  mountpoint?: string;
  /** A program, with its arguments, that runs the server. */
  wrap?: string[];
  env?: NodeJS.ProcessEnv;
}

export interface Server {
  mountpoint: string;
  process: ChildProcess;
  /** Resolves with the exit code when the process has ended. */
  ended: Promise<number | null>;
  /** What it has written to stderr so far. */
  stderr(): string;
  /** Unmounts, lazily, and waits for the end. */
  stop(): Promise<void>;
}

/** The error that the server answered instead of mounting. */
export class MountRefused extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export function temporaryFolder(scope: Scope, uid?: number): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  if (uid !== undefined) fs.chownSync(folder, uid, uid);
  scope.teardown(() => fs.rmdirSync(folder));
  return folder;
}

export async function startServer(scope: Scope, options: ServerOptions): Promise<Server> {
  const { session, threads = 2, onDisk, maskInitFlags, uid, wrap = [], env = {}, ...rest } = options;
  const mountpoint = options.mountpoint ?? temporaryFolder(scope, uid);
  const mount: MountOptions = {
    source: 'imagefs:test',
    readOnly: false,
    allowOther: false,
    kernelCache: false,
    flags: [],
    ...rest,
    mountpoint,
  };
  const request: ServerRequest = {
    session,
    mount,
    threads,
    ...(onDisk && { onDisk }),
    ...(maskInitFlags && { maskInitFlags }),
    ...(uid && { uid }),
  };
  const [program, ...args] = [...wrap, process.execPath, path.join(__dirname, 'server.js'), JSON.stringify(request)];
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  // Not `exit`: what it has written may come later than that.
  const ended = once(child, 'close').then(([code]) => code as number | null);
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM');
    await ended;
  };
  scope.teardown(async () => {
    // Whatever happened: first the mount, so that nobody waits for it, then the process.
    detachMount(mountpoint);
    child.kill('SIGKILL');
    await ended;
  });
  const lines = readline.createInterface({ input: child.stdout });
  const answer = await Promise.race([
    once(lines, 'line').then(([line]) => JSON.parse(line as string) as ServerAnswer),
    ended.then(() => ({ code: 'EXIT', message: `the server ended: ${stderr}` })),
  ]);
  if ('message' in answer) throw new MountRefused(answer.code, answer.message);
  return { mountpoint, process: child, ended, stderr: () => stderr, stop };
}

/** Reads a file to its end, whatever its st_size says. */
export async function readWhole(file: string): Promise<string> {
  const handle = await fs.promises.open(file);
  try {
    const parts: Buffer[] = [];
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.alloc(65536), 0, 65536, null);
      if (bytesRead === 0) return Buffer.concat(parts).toString();
      parts.push(buffer.subarray(0, bytesRead));
    }
  } finally {
    await handle.close();
  }
}

export async function eventsOf(server: Server): Promise<EventCounts> {
  return JSON.parse(await readWhole(path.join(server.mountpoint, 'events.json'))) as EventCounts;
}

/** Says why a test cannot run here; a failure where everything is required. */
export function skip(t: ExecutionContext, reason: string): void {
  t.log(reason);
  t.not(process.env.IMAGEFS_REQUIRE_ALL, '1', reason);
}

/** Why this session cannot be tried here; undefined when it can. As distributions do, /dev/fuse is opened to all. */
export async function whyNot(session: SessionKind): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'these tests mount as root';
  if (spawnSync('unshare', ['-m', 'true'], { stdio: 'ignore' }).status !== 0) return 'root may not mount here';
  try {
    fs.chmodSync('/dev/fuse', 0o666);
    fs.closeSync(fs.openSync('/dev/fuse', 'r+'));
    if (session === 'native') requirePackage();
    return undefined;
  } catch (error) {
    return `no FUSE here: ${(error as Error).message}`;
  }
}

export function hasFusermount(): boolean {
  return spawnSync('fusermount3', ['--version'], { stdio: 'ignore' }).error === undefined;
}

/** Are shared mappings offered with direct I/O (Linux 6.6)? */
export function hasSharedDirectMappings(): boolean {
  const [major, minor] = os.release().split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 6);
}
