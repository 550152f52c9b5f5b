/** The writers of one round, as threads of this process: the daemon's end is not theirs. */
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { Progress } from './progress';
import { type Bounds, Expectation } from './versions';
import type { WriterPlan, WriterReport } from './writer-worker';

export interface RoundPlan {
  mountpoint: string;
  seed: number;
  punch: boolean;
  tagBase: number;
  start: Int32Array;
  /** Absent: none are taken. */
  snapshots?: { names: string[]; prefix: string };
}

export const WRITERS = 4;

export interface RoundOutcome {
  /** What the disk may hold now. */
  disk: Expectation;
  /** What a snapshot may hold that was taken, by name. */
  snapshots: Map<string, Expectation>;
  /** Snapshots that the last call may have taken or deleted. */
  doubtful: string[];
  deleted: string[];
  operations: number;
  syncs: number;
  snapshotChanges: number;
  wrong: string[];
}

export class Writers {
  private readonly progress = Progress.create(WRITERS);
  private readonly reports: Promise<WriterReport>[];

  constructor(private readonly plan: RoundPlan) {
    this.reports = Array.from({ length: WRITERS }, (_, writer) => this.start('writer', writer));
    if (plan.snapshots !== undefined) this.reports.push(this.start('snapshots', WRITERS));
  }

  private start(role: WriterPlan['role'], writer: number): Promise<WriterReport> {
    const { mountpoint, seed, punch, tagBase, start, snapshots } = this.plan;
    const workerData: WriterPlan = {
      role,
      mountpoint,
      writer,
      writers: WRITERS,
      seed: seed * 16 + writer,
      punch,
      tagBase,
      start,
      shared: this.progress.buffer,
      snapshots: snapshots?.names ?? [],
      prefix: snapshots?.prefix ?? '',
    };
    const worker = new Worker(path.join(__dirname, 'writer-worker.js'), { workerData });
    return new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  }

  /** Operations that have returned so far. */
  get operations(): number {
    return this.progress.completed().reduce((sum, count) => sum + count, 0);
  }

  get syncedOperations(): number {
    return this.progress.synced().reduce((sum, count) => sum + count, 0);
  }

  /** Failures from now on are ours: the daemon is about to be killed, or they shall stop. */
  announceEnd(): void {
    this.progress.announceEnd();
  }

  async outcome(): Promise<RoundOutcome> {
    const reports = await Promise.all(this.reports);
    const logs = reports.slice(0, WRITERS).map(({ log }) => log);
    const synced = this.progress.synced();
    const bounds = (floor: number[], ceiling: number[]): Bounds[] =>
      floor.map((number, writer) => ({ floor: number, ceiling: ceiling[writer] ?? Number.POSITIVE_INFINITY }));
    const { start } = this.plan;
    const outcome: RoundOutcome = {
      disk: Expectation.after(start, logs, bounds(synced, [])),
      snapshots: new Map(),
      doubtful: [],
      deleted: [],
      operations: logs.reduce((sum, log) => sum + log.length, 0),
      syncs: reports.reduce((sum, report) => sum + report.syncs, 0),
      snapshotChanges: 0,
      wrong: reports.flatMap(({ wrong }) => wrong),
    };
    for (const event of reports.flatMap(({ events }) => events)) {
      outcome.snapshotChanges++;
      if (!event.done) outcome.doubtful.push(event.name);
      if (event.kind === 'take') {
        outcome.snapshots.set(event.name, Expectation.after(start, logs, bounds(event.floor, event.ceiling)));
      } else if (event.done) outcome.deleted.push(event.name);
    }
    return outcome;
  }
}
