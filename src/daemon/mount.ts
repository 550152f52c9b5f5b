/**
 * A mount from the daemon's side.
 *
 *   start ──► serving ──► (kernel lets go) ──► flusher stops ──► images close ──► ended, exit code 0 or 1
 *                │  ▲
 *    leave()     ▼  │ busy: flush, say who holds it, try again
 *             unmounting
 *
 *   a thread is lost: abandon the mount, flush nothing, ended with exit code 1 by force
 *
 * The main thread never touches the mount itself: with all workers busy it would wait for ever.
 */
import { BlockError } from '../errors';
import type { MountOptions } from '../fuse/session';
import { abandon, unmount } from '../fuse/unmount';
import { logOf } from '../log';
import type { ImageFileSystemOptions } from '../vfs/image-filesystem';
import { buildTree, type TreePlan } from '../vfs/tree';
import type { DaemonConfig } from './config';
import { Crew, FIRST_WORKER_THREAD } from './crew';
import { BUSY_SEATS, COLD_SEATS } from './governor';
import { busyMessage } from './holders';
import { MountedImages } from './images';
import type { Journal } from './journal';
import type { LastWords } from './last-words';
import { MountTable } from './mountinfo';

const log = logOf('daemon:mount');

/** Pause between two attempts to unmount a busy mount: nobody tells when it is let go. Each flushes what was written since. */
const BUSY_RETRY_MIN_MS = 200;
const BUSY_RETRY_MAX_MS = 1000;

export type MountEnd =
  /** Everything is on disk and released, or the messages were said; the process may end. */
  | { kind: 'clean'; exitCode: number }
  /** A thread is lost: other threads may wait for it for ever, so the process must be ended by force. */
  | { kind: 'lost' };

export class LiveMount {
  /** The mount is gone and everything is done. */
  readonly ended: Promise<MountEnd>;
  private leaving = false;
  private gone = false;
  private failed = false;
  private reportLost: (end: MountEnd) => void = () => {};

  private constructor(
    private readonly config: DaemonConfig,
    private readonly images: MountedImages,
    private readonly crew: Crew,
    private readonly plan: TreePlan,
    /** Our entry in the table of mounts; it keeps its number wherever the mount is moved. */
    private readonly mountId: number | undefined,
    private readonly say: (message: string) => void,
    private readonly lastWords: LastWords,
    letGo: Promise<void>,
  ) {
    const finished = letGo.then(() => this.finish());
    const lost = new Promise<MountEnd>((resolve) => {
      this.reportLost = resolve;
    });
    void crew.lost.then((reason) => this.fail(reason));
    this.ended = Promise.race([finished, lost]);
  }

  get warnings(): string[] {
    return this.images.warnings;
  }

  /** Opens the images, mounts and starts serving. Throws BlockError; then nothing is mounted or locked once the process has ended. */
  static async start(config: DaemonConfig, journal: Journal, lastWords: LastWords): Promise<LiveMount> {
    const workers = config.session === 'kernel' ? config.threads : 0;
    const crew = new Crew(workers, config.threadsMax);
    const images = MountedImages.open(config, FIRST_WORKER_THREAD + config.threadsMax);
    const { plan, letGo } = await serve(config, images, crew);
    const entry = MountTable.read().find(config.mountpoint);
    const say = (message: string): void => journal.say(message);
    return new LiveMount(config, images, crew, plan, entry?.id, say, lastWords, letGo);
  }

  /**
   * Unmounts as soon as nobody uses the mount. Until then it goes on working, and what is written is flushed at every attempt.
   * Asking again changes nothing: there is no quicker way that would keep all data.
   */
  async leave(why: string): Promise<void> {
    if (this.leaving) return;
    this.leaving = true;
    this.say(`${why}: unmounting "${this.config.mountpoint}"`);
    this.crew.endCold();
    let said = '';
    let pause = BUSY_RETRY_MIN_MS;
    while (!this.gone) {
      const failures = this.images.flush();
      const busy = await this.tryUnmount();
      const text = [...failures, ...(busy === undefined ? [] : [busy])].join('; ');
      if (text !== said && text !== '') this.say(text);
      if (busy === undefined) return;
      said = text;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(BUSY_RETRY_MAX_MS, pause * 1.2);
    }
  }

  /** @returns why it could not be unmounted; undefined when it was */
  private async tryUnmount(): Promise<string | undefined> {
    const table = MountTable.read();
    const entry = table.entries.find(({ id }) => id === this.mountId);
    if (entry === undefined)
      return this.gone ? undefined : 'The mount is detached; waiting until its last user lets go';
    if (table.find(entry.mountpoint)?.id !== entry.id) {
      return `Another mount covers "${entry.mountpoint}"; waiting until it is gone`;
    }
    try {
      await unmount(entry.mountpoint, { lazy: false });
      return undefined;
    } catch (error) {
      if (error instanceof BlockError && error.code === 'BUSY') return busyMessage(entry, table);
      return error instanceof Error ? error.message : String(error);
    }
  }

  /** The kernel has let go, no worker is left: the last flush. */
  private async finish(): Promise<MountEnd> {
    this.gone = true;
    await this.crew.stopFlusher();
    const problems = [...(await this.finishSnapshots()), ...this.images.close()];
    for (const problem of problems) {
      const message = `${problem}; what was written since the last flush may be lost`;
      this.say(message);
      this.lastWords.say(message);
    }
    if (problems.length === 0) this.lastWords.sayClean();
    log('closed with %d problems', problems.length);
    return { kind: 'clean', exitCode: problems.length === 0 ? 0 : 1 };
  }

  /** Deletes snapshots that went while they were read. @returns a line for each failure */
  private async finishSnapshots(): Promise<string[]> {
    if (this.config.readOnly || !this.plan.files.some((file) => file?.kind === 'snapshots')) return [];
    try {
      const { finishSnapshots } = await import('../vfs/image-filesystem');
      finishSnapshots(this.plan, this.images.nodes);
      return [];
    } catch (error) {
      return [error instanceof Error ? error.message : String(error)];
    }
  }

  /**
   * Takes the mount away from its users: with a thread lost, some requests would never be answered. Nothing is flushed, because the lost
   * thread may hold a lock; a crash loses no more than that (DESIGN, crash safety).
   */
  fail(reason: string): void {
    if (this.failed) return;
    this.failed = true;
    this.gone = true;
    const message = `${reason}; "${this.config.mountpoint}" is taken down; what was written since the last flush may be lost`;
    this.say(message);
    this.lastWords.say(message);
    try {
      abandon(this.config.mountpoint);
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
    this.reportLost({ kind: 'lost' });
  }
}

interface Serving {
  plan: TreePlan;
  /** The kernel has let go of the mount. */
  letGo: Promise<void>;
}

/** Mounts and sets all threads to work. */
async function serve(config: DaemonConfig, images: MountedImages, crew: Crew): Promise<Serving> {
  const testing = config.testing ?? {};
  const plan = buildTree(images.treeImages(), { singleImage: config.single, mountedMs: Date.now() });
  const fileSystem: ImageFileSystemOptions = {
    growable: config.growable,
    readOnly: config.readOnly,
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
  };
  const { mountpoint, source, readOnly, allowOther, kernelCache, flags } = config;
  const options: MountOptions = { mountpoint, source, readOnly, allowOther, kernelCache, flags };
  const descriptors = images.descriptors;
  const flushed = config.readOnly ? [] : descriptors.filter((image) => image !== undefined);

  // Only the session in use is loaded: fuse-native alone would cost a tenth of the time until the mount answers.
  if (config.session === 'native') {
    crew.flushRegularly({ images: flushed, testing });
    const { startNative } = await import('../fuse/native/session');
    const { createFileSystem } = await import('../vfs/image-filesystem');
    const session = await startNative(options, createFileSystem(plan, images.nodes, fileSystem));
    return { plan, letGo: session.ended };
  }
  const { mountKernel } = await import('../fuse/kernel/mount');
  const { createSeats } = await import('../fuse/kernel/seats');
  const deviceFd = mountKernel(options);
  crew.flushRegularly({ images: flushed, deviceFd, testing });
  const serve = { kernelCache, readOnly, seats: createSeats(COLD_SEATS, BUSY_SEATS) };
  crew.serve({ deviceFd, plan, images: descriptors, fileSystem, serve, testing });
  return { plan, letGo: crew.workersEnded };
}
