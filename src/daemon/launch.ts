/**
 * Starts a daemon and waits until its mount answers.
 *
 *   command                                  daemon (own session, cwd /, stdio /dev/null)
 *     spawn  ──── config, one line ────────►   opens images, mounts, starts workers
 *     wait   ◄─── mounted | failed ────────    goes on serving
 *     stat(mountpoint): the proof
 *
 * Both ends hold one socket. If the command dies before the answer, the daemon cannot tell it and unmounts again. In the
 * foreground the command stays as the daemon's parent, and the socket's end tells the daemon that the parent has gone.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import { BlockError, type BlockErrorCode, hostError } from '../errors';
import { type DaemonConfig, type DaemonMessage, daemonArguments } from './config';

/** Always the bundle (scripts/bundle.js), which starts faster; from here and from any other bundle the way is the same. */
const MAIN = path.join(__dirname, '..', '..', 'bundle', 'daemon', 'main.js');

export interface LaunchedDaemon {
  pid: number;
  /** Images that could not be opened and show an error instead. */
  warnings: string[];
  /** Foreground only: the daemon's exit code. */
  ended: Promise<number>;
  signal(name: NodeJS.Signals): void;
}

/**
 * @param named what the user named, for `imagefs list`
 * @throws BlockError with the daemon's own message when the mount failed; nothing is left behind then
 */
export async function launchDaemon(config: DaemonConfig, named: string[]): Promise<LaunchedDaemon> {
  const output = config.foreground ? 'inherit' : 'ignore';
  const child = spawn(process.execPath, [MAIN, ...daemonArguments(config, named)], {
    cwd: '/',
    detached: !config.foreground,
    stdio: ['ignore', output, output, 'pipe'],
  });
  const ended = new Promise<number>((resolve) => child.once('exit', (code) => resolve(code ?? 1)));
  const control = child.stdio[3] as Duplex;
  const message = await ask(child, control, config);
  if (message.kind === 'failed') {
    // It holds locks until it has gone, and whoever hears of the failure may try again at once.
    await ended;
    throw new BlockError(message.code as BlockErrorCode, message.message, { path: config.mountpoint });
  }
  await answers(config.mountpoint);
  if (!config.foreground) {
    control.destroy();
    child.unref();
  }
  return { pid: child.pid ?? 0, warnings: message.warnings, ended, signal: (name) => void child.kill(name) };
}

function ask(child: ChildProcess, control: Duplex, config: DaemonConfig): Promise<DaemonMessage> {
  return new Promise((resolve, reject) => {
    let text = '';
    child.once('error', (error) => reject(hostError(error, 'Cannot start the imagefs daemon')));
    child.once('close', (code, signal) => {
      const how = signal === null ? `exit code ${code}` : signal;
      reject(new BlockError('IO', `The imagefs daemon ended before it had mounted (${how}); see imagefs mount -d`));
    });
    // The other end closes when the daemon ends; `close` reports that.
    control.on('error', () => {});
    control.on('data', (data: Buffer) => {
      text += data.toString('utf8');
      if (text.includes('\n')) resolve(JSON.parse(text) as DaemonMessage);
    });
    control.write(`${JSON.stringify(config)}\n`);
  });
}

/** Asks the mount for its root: the answer comes from a worker, so reading works from now on. */
async function answers(mountpoint: string): Promise<void> {
  try {
    await fs.promises.stat(mountpoint);
  } catch (error) {
    throw hostError(error, `The mount at "${mountpoint}" does not answer`, { path: mountpoint });
  }
}
