import { dictionary } from "./dictionary";

export const playground = dictionary({
  "playground.title": ["Playground", "对话"],
  "playground.about": [
    "Talk to any model that is served. The conversation is kept in this page alone.",
    "与任何已提供服务的模型对话。对话只保存在本页面中。",
  ],
  "playground.model": ["Model", "模型"],
  "playground.model.hint": [
    "`MODEL:RUN` answers with the adapter that a run has learnt.",
    "`MODEL:RUN` 使用某次运行学到的适配器回答。",
  ],
  "playground.run": ["Adapter of a run", "运行的适配器"],
  "playground.run.none": ["none", "无"],
  "playground.temperature": ["Temperature", "温度"],
  "playground.temperature.hint": [
    "0 always takes the likeliest token.",
    "0 总是选择最可能的词元。",
  ],
  "playground.most": ["Most tokens", "最多词元数"],
  "playground.system": ["Instructions", "指令"],
  "playground.system.hint": [
    "Said before the conversation, as its system prompt.",
    "作为系统提示，放在对话之前。",
  ],
  "playground.number": [
    "Must be a number from {least} to {most}.",
    "必须是 {least} 到 {most} 之间的数字。",
  ],
  "playground.talk": ["Conversation", "对话内容"],
  "playground.you": ["You", "您"],
  "playground.answer": ["Answer", "回答"],
  "playground.ask": ["Your question", "您的问题"],
  "playground.ask.hint": [
    "Enter sends, Shift and Enter begin a new line.",
    "Enter 发送，Shift+Enter 换行。",
  ],
  "playground.send": ["Send", "发送"],
  "playground.stop": ["Stop", "停止"],
  "playground.new": ["New conversation", "新对话"],
  "playground.first": ["First token after {ms} ms", "首个词元用时 {ms} 毫秒"],
  "playground.speed": ["{n} tokens a second", "每秒 {n} 个词元"],
  "playground.empty": ["No language model is served", "没有语言模型在服务"],
  "playground.empty.about": ["Start the coordinator with one:", "启动协调器时指定一个："],
});
