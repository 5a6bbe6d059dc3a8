#!/usr/bin/env python3
"""Writes the text the tiny base model is pretrained on: one {"text": ...} a line.

    python3 assets/make_corpus.py --out assets/corpus/corpus.jsonl [--extra FILE_OR_FOLDER ...]

Two sources. The first is in this file: word lists and sentence patterns about health, law and daily life, in Chinese
and English, as plain sentences and as questions and answers in the chat format. The second is whatever text the caller
names with --extra (.txt, .json, .jsonl); assets/README.md says which files the shipped model saw.

No line holds an answer of assets/data verbatim: such lines are dropped, so the demo's answers are new to the model.
The same arguments give the same file, byte for byte. Needs nothing but Python 3.9.
"""
import argparse
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent

# ---- what the patterns speak about --------------------------------------------------------------------------------

# illness | clinic | signs | what helps | what it is
ILLS_ZH = """
感冒|呼吸科|鼻塞、流涕、咽痛|多休息、多喝温水|病毒引起的上呼吸道感染
流感|发热门诊|高热、全身酸痛、乏力|卧床休息、按时复诊|流感病毒引起的急性传染病
肺炎|呼吸科|发热、咳嗽、咳痰|规范用药、多休息|肺部的感染
支气管炎|呼吸科|咳嗽、咳痰、气喘|戒烟、避免冷空气|支气管黏膜的炎症
哮喘|呼吸科|喘息、胸闷、夜间咳嗽|远离过敏原、随身带药|气道的慢性炎症
慢阻肺|呼吸科|气短、咳痰、活动后气促|戒烟、呼吸锻炼|不完全可逆的气流受限
高血压|心内科|头晕、头胀、心悸|低盐饮食、规律服药|动脉血压持续升高
冠心病|心内科|胸闷、胸痛、气短|控制血脂、避免劳累|冠状动脉狭窄引起的心脏病
心力衰竭|心内科|水肿、气促、夜间憋醒|限制盐分、每天称体重|心脏泵血能力下降
心律失常|心内科|心慌、漏跳、头晕|少喝浓茶、定期复查|心跳的快慢或节律不正常
脑卒中|神经内科|嘴歪、手脚无力、说话含糊|控制血压、坚持康复|脑血管堵塞或破裂
偏头痛|神经内科|一侧头痛、恶心、怕光|规律作息、避开诱因|反复发作的头痛
癫痫|神经内科|抽搐、意识丧失、发呆|规律服药、避免熬夜|脑细胞异常放电
帕金森病|神经内科|手抖、动作慢、肌肉僵硬|坚持锻炼、按时服药|一种神经退行性疾病
失眠|睡眠门诊|入睡困难、早醒、白天疲倦|固定作息、少用手机|睡眠的量或质不足
糖尿病|内分泌科|口渴、多尿、体重下降|控制饮食、监测血糖|以血糖升高为特点的代谢病
甲亢|内分泌科|心慌、怕热、消瘦|按时服药、少吃海带|甲状腺激素分泌过多
甲减|内分泌科|怕冷、乏力、体重增加|补充甲状腺激素、定期抽血|甲状腺激素不足
痛风|风湿免疫科|关节红肿、剧痛、发热|多喝水、不喝酒|尿酸盐结晶沉积引起的关节炎
类风湿关节炎|风湿免疫科|晨僵、关节肿痛、乏力|关节保暖、适度活动|自身免疫性关节炎
骨质疏松|骨科|腰背痛、身高变矮、易骨折|补钙、晒太阳|骨量减少、骨头变脆
骨折|骨科|疼痛、肿胀、不能活动|固定、抬高患肢|骨头的完整性中断
颈椎病|骨科|颈痛、手麻、头晕|少低头、做颈部操|颈椎退变压迫周围组织
腰椎间盘突出|骨科|腰痛、腿麻、腿痛|少久坐、练腰背肌|椎间盘突出压迫神经
胃炎|消化科|上腹痛、腹胀、恶心|按时吃饭、少吃辛辣|胃黏膜的炎症
胃溃疡|消化科|餐后上腹痛、反酸、黑便|戒烟戒酒、按疗程服药|胃黏膜的深层损伤
肠炎|消化科|腹泻、腹痛、恶心|补充水分、清淡饮食|肠道的炎症
便秘|消化科|排便费力、大便干硬、腹胀|多吃粗粮、多活动|排便次数少而且困难
脂肪肝|消化科|乏力、右上腹不适、体检异常|减重、少吃甜食|肝细胞里脂肪过多
乙肝|肝病科|乏力、食欲差、黄疸|定期查肝功能、不饮酒|乙肝病毒引起的肝炎
阑尾炎|普外科|右下腹痛、恶心、发热|尽早手术、术后早下床|阑尾的急性炎症
胆结石|普外科|右上腹痛、恶心、发热|少吃油腻、定期复查|胆囊或胆管里的结石
痔疮|肛肠科|便血、疼痛、瘙痒|温水坐浴、少久坐|肛门静脉曲张的团块
肾结石|泌尿外科|腰部绞痛、血尿、恶心|大量饮水、适度跳跃|尿里的矿物质结成的石头
尿路感染|泌尿外科|尿频、尿急、尿痛|多喝水、勤排尿|细菌引起的泌尿道炎症
肾炎|肾内科|浮肿、泡沫尿、血压高|限盐、定期查尿|肾小球的炎症
贫血|血液科|乏力、头晕、面色苍白|补铁、均衡饮食|血红蛋白低于正常
湿疹|皮肤科|瘙痒、红斑、脱屑|保湿、避免搔抓|皮肤的慢性炎症
荨麻疹|皮肤科|风团、瘙痒、皮肤发红|避开过敏原、穿宽松衣物|皮肤血管的过敏反应
痤疮|皮肤科|粉刺、丘疹、脓疱|清洁皮肤、少吃甜食|毛囊皮脂腺的炎症
带状疱疹|皮肤科|成簇水疱、刺痛、发热|早用药、多休息|水痘病毒再次活跃引起的皮疹
近视|眼科|看远模糊、眯眼、眼疲劳|多到户外、定期验光|远处的物体成像在视网膜前
白内障|眼科|视物模糊、怕光、重影|定期检查、必要时手术|晶状体变得浑浊
青光眼|眼科|眼胀、头痛、视野缺损|按时滴药、定期测眼压|眼压升高损害视神经
结膜炎|眼科|眼红、分泌物多、异物感|勤洗手、不揉眼|结膜的炎症
中耳炎|耳鼻喉科|耳痛、听力下降、流脓|保持耳道干燥、遵医嘱用药|中耳的感染
鼻炎|耳鼻喉科|打喷嚏、鼻痒、鼻塞|冲洗鼻腔、远离尘螨|鼻黏膜的炎症
扁桃体炎|耳鼻喉科|咽痛、发热、吞咽痛|多喝水、清淡饮食|扁桃体的感染
蛀牙|口腔科|牙痛、怕冷怕热、牙洞|早晚刷牙、少吃糖|细菌产酸破坏牙齿
牙周炎|口腔科|牙龈出血、口臭、牙松动|用牙线、定期洁牙|牙齿周围组织的炎症
水痘|儿科|发热、皮疹、水疱|居家隔离、剪短指甲|水痘病毒引起的传染病
手足口病|儿科|口腔疱疹、手脚皮疹、发热|勤洗手、居家休息|肠道病毒引起的传染病
小儿腹泻|儿科|大便稀、次数多、哭闹|补液、继续喂养|孩子的肠道感染或消化不良
痛经|妇科|下腹痛、腰酸、乏力|热敷、注意休息|月经期间的腹部疼痛
子宫肌瘤|妇科|月经量多、腹胀、贫血|定期超声、必要时手术|子宫的良性肿瘤
抑郁症|精神科|情绪低落、没兴趣、早醒|规律治疗、家人陪伴|以持续低落为特点的疾病
焦虑症|精神科|紧张、心慌、坐立不安|放松训练、规律运动|过度而持续的担心
肺癌|肿瘤科|咳嗽、痰血、消瘦|戒烟、规范治疗|肺部的恶性肿瘤
胃癌|肿瘤科|上腹痛、消瘦、黑便|早查胃镜、规范治疗|胃部的恶性肿瘤
乳腺癌|乳腺科|乳房肿块、皮肤凹陷、乳头溢液|定期检查、规范治疗|乳腺的恶性肿瘤
""".strip().splitlines()

ILLS_EN = """
a cold|a family doctor|a runny nose, sneezing and a sore throat|rest and warm drinks
influenza|a family doctor|high fever, aches and tiredness|rest and plenty of fluids
pneumonia|a lung clinic|fever, cough and breathlessness|treatment as prescribed and rest
asthma|a lung clinic|wheezing, a tight chest and a night cough|avoiding triggers and using an inhaler correctly
high blood pressure|a heart clinic|headache or no symptoms at all|less salt and regular medicine
heart failure|a heart clinic|swollen legs and breathlessness|less salt and daily weighing
angina|a heart clinic|pressure in the chest during effort|rest and urgent review
a stroke|an emergency department|a weak arm, a drooping face and slurred speech|calling an ambulance without delay
migraine|a neurology clinic|one-sided headache and nausea|regular sleep and a dark room
epilepsy|a neurology clinic|seizures and short blank spells|regular medicine and enough sleep
diabetes|a diabetes clinic|thirst, frequent urination and weight loss|careful meals and regular tests
gout|a joint clinic|a red, swollen and painful joint|water, rest and less alcohol
arthritis|a joint clinic|stiff and painful joints|gentle exercise and warmth
osteoporosis|a bone clinic|back pain and easy fractures|calcium, sunlight and walking
a sprain|an injury clinic|pain and swelling around a joint|rest, ice and raising the limb
gastritis|a stomach clinic|upper belly pain and nausea|regular meals and less spicy food
food poisoning|a family doctor|vomiting, cramps and loose stools|small sips of water and rest
constipation|a family doctor|hard stools and bloating|fibre, water and movement
appendicitis|an emergency department|pain low on the right side and fever|early treatment in hospital
kidney stones|a urology clinic|sudden pain in the side and blood in urine|plenty of water and pain control
a bladder infection|a family doctor|burning and frequent urination|water and the right treatment
anaemia|a blood clinic|tiredness, pale skin and dizziness|iron-rich food and finding the cause
eczema|a skin clinic|dry, red and itchy skin|moisturiser and gentle washing
hives|a skin clinic|raised itchy patches|avoiding the trigger and loose clothes
acne|a skin clinic|blackheads and red spots|gentle washing and patience
short sight|an eye clinic|blurred distant vision|glasses and time outdoors
cataract|an eye clinic|cloudy vision and glare|regular review or surgery
an ear infection|an ear clinic|ear pain and poor hearing|keeping the ear dry and seeing a doctor
hay fever|an allergy clinic|sneezing and itchy eyes|avoiding pollen and rinsing the nose
tooth decay|a dentist|toothache and sensitivity|brushing twice a day and less sugar
gum disease|a dentist|bleeding gums and bad breath|floss and regular cleaning
chickenpox|a children's clinic|fever and itchy blisters|staying at home and short nails
depression|a mental health clinic|low mood and loss of interest|support, talking and treatment
anxiety|a mental health clinic|worry, tension and a fast heartbeat|slow breathing and regular exercise
insomnia|a sleep clinic|trouble falling asleep and early waking|regular hours and fewer screens
""".strip().splitlines()

# matter | body of law | what to do | where to go
LAW_ZH = """
拖欠工资|劳动法|保留考勤和工资记录|劳动监察部门
违法辞退|劳动合同法|保存辞退通知和聊天记录|劳动仲裁委员会
工伤赔偿|工伤保险条例|及时治疗并申请认定|人力资源和社会保障局
加班争议|劳动法|收集打卡和加班审批|劳动仲裁委员会
租房押金|民法典|保存合同和交接清单|人民法院
房屋漏水|民法典|拍照录像并通知对方|人民调解委员会
买卖纠纷|民法典|核对合同并书面催告|人民法院
网购退货|消费者权益保护法|保留订单和商品照片|消费者协会
食品安全|食品安全法|留存小票和样品|市场监督管理局
借款不还|民法典|整理借条和转账记录|人民法院
离婚纠纷|民法典|商量子女抚养和财产|婚姻登记机关
抚养费|民法典|记录实际支出|人民法院
遗产继承|民法典|查找遗嘱和财产凭证|公证处
家庭暴力|反家庭暴力法|及时报警并验伤|公安机关
交通事故|道路交通安全法|保护现场并拍照|交警部门
邻里噪音|治安管理处罚法|先沟通再报警|公安机关
网络诈骗|刑法|停止转账并保存证据|公安机关
个人信息泄露|个人信息保护法|要求删除并留存证据|网信部门
著作权侵权|著作权法|固定网页证据|版权管理部门
商标侵权|商标法|购买样品并公证|市场监督管理局
专利申请|专利法|准备说明书和附图|国家知识产权局
行政处罚|行政处罚法|看清决定书和期限|行政复议机关
""".strip().splitlines()

LAW_EN = """
unpaid wages|records of hours and messages|the labour office
an unfair dismissal|the dismissal letter and the contract|a labour tribunal
a rent deposit|the lease and photos of the room|the local court
a faulty product|the receipt and the product itself|the consumer office
an unpaid loan|the note of debt and bank records|the local court
a divorce|a list of property and papers about the children|a family lawyer
an inheritance|the will and proof of family ties|a notary
a traffic accident|photos, names and the police report|the insurance company
noise from neighbours|a diary of dates and times|a mediator
online fraud|screenshots and payment records|the police
leaked personal data|the notice and all messages|the data protection office
a copied article|dated drafts and screenshots|a copyright lawyer
an administrative fine|the decision and its date|the review office
""".strip().splitlines()

NAMES_ZH = "小明 小红 小李 小王 小张 老陈 老刘 李阿姨 王叔叔 张奶奶 赵爷爷 周老师 吴医生 孙护士 陈律师 妈妈 爸爸 姐姐 弟弟 邻居".split()
PLACES_ZH = "公园 学校 超市 医院 图书馆 车站 家里 办公室 菜市场 河边 广场 餐馆 药店 社区中心 法院门口 海边 山上 村里".split()
ACTS_ZH = "散步 买菜 看书 跑步 做饭 打扫房间 等公交车 量血压 排队挂号 和朋友聊天 练太极拳 写作业 看电影 喝茶 修自行车 种花 画画 听音乐 学英语 下象棋".split()
TIMES_ZH = "早上 中午 下午 傍晚 晚上 昨天 今天 明天 周末 春天 夏天 秋天 冬天 上个月 去年 饭后 睡前 下班后".split()
FEEL_ZH = "很高兴 有点累 十分满意 觉得很轻松 心里很平静 有些着急 感到很温暖 非常放松 有点担心 精神很好".split()
FOODS_ZH = ["苹果", "香蕉", "牛奶", "鸡蛋", "豆腐", "菠菜", "西红柿", "胡萝卜", "米饭", "面条", "燕麦", "鱼肉", "瘦牛肉", "酸奶",
            "核桃", "红薯", "玉米", "西兰花", "橙子", "海带", "木耳", "黄瓜", "白菜", "绿豆", "小米粥", "虾", "鸡胸肉", "豆浆"]
NUTRI_ZH = ["蛋白质", "维生素C", "维生素D", "膳食纤维", "钙", "铁", "钾", "碳水化合物", "水分", "不饱和脂肪酸"]
WHO_ZH = ["老人", "孩子", "孕妇", "上班族", "学生", "高血压患者", "糖尿病患者", "运动员", "刚出院的病人", "司机", "教师", "年轻人"]
HABITS_ZH = ["早睡早起", "少吃盐", "多喝水", "每天散步", "按时吃饭", "定期体检", "勤洗手", "不吸烟", "少喝酒", "保持好心情",
             "多吃蔬菜", "少坐多动", "睡前不看手机", "控制体重", "晒太阳", "按时复诊", "练习深呼吸", "记录血压", "饭后漱口", "常开窗通风"]
GOOD_ZH = ["对心脏有好处", "可以增强体质", "能改善睡眠", "有助于控制血压", "能减少疾病", "让人精神更好", "有利于消化", "可以保护骨骼",
           "能缓解压力", "有助于恢复健康"]
BODY_ZH = ["头", "眼睛", "耳朵", "鼻子", "嗓子", "脖子", "肩膀", "胸口", "后背", "腰", "肚子", "胃", "膝盖", "脚踝", "手腕", "手指", "小腿", "牙齿", "皮肤"]
ACHE_ZH = ["疼", "发麻", "发痒", "肿", "不舒服", "发凉", "酸痛"]
DUR_ZH = ["一天", "两天", "三天", "五天", "一周", "十天", "两周", "半个月", "一个月", "三个月", "半年"]
TEST_ZH = ["血常规", "尿常规", "肝功能", "肾功能", "血脂", "血糖", "心电图", "胸片", "腹部超声", "胃镜", "核磁共振", "骨密度", "甲状腺功能", "视力检查"]
ANIMALS = [("猫", "cat"), ("狗", "dog"), ("鸟", "bird"), ("鱼", "fish"), ("马", "horse"), ("牛", "cow"), ("羊", "sheep"), ("兔子", "rabbit"),
           ("老虎", "tiger"), ("大象", "elephant"), ("猴子", "monkey"), ("熊猫", "panda"), ("鸭子", "duck"), ("蜜蜂", "bee")]
COUNTRY = [("中国", "北京", "China", "Beijing"), ("法国", "巴黎", "France", "Paris"), ("日本", "东京", "Japan", "Tokyo"), ("英国", "伦敦", "Britain", "London"),
           ("德国", "柏林", "Germany", "Berlin"), ("俄罗斯", "莫斯科", "Russia", "Moscow"), ("意大利", "罗马", "Italy", "Rome"), ("埃及", "开罗", "Egypt", "Cairo"),
           ("印度", "新德里", "India", "New Delhi"), ("泰国", "曼谷", "Thailand", "Bangkok"), ("韩国", "首尔", "Korea", "Seoul"), ("西班牙", "马德里", "Spain", "Madrid")]
WORDS = [("水", "water"), ("火", "fire"), ("太阳", "sun"), ("月亮", "moon"), ("医生", "doctor"), ("护士", "nurse"), ("法律", "law"), ("合同", "contract"),
         ("心脏", "heart"), ("血液", "blood"), ("骨头", "bone"), ("药", "medicine"), ("食物", "food"), ("睡眠", "sleep"), ("健康", "health"), ("朋友", "friend"),
         ("时间", "time"), ("书", "book"), ("学校", "school"), ("家庭", "family"), ("工作", "work"), ("城市", "city"), ("河", "river"), ("山", "mountain")]
NAMES_EN = "Tom Anna Li Maria Peter Grace Omar Nina Jack Lucy Sam Eva Ben Kate".split()
PLACES_EN = ["park", "school", "market", "hospital", "library", "station", "office", "kitchen", "garden", "pharmacy", "court", "beach"]
ACTS_EN = ["walked slowly", "read a book", "met an old friend", "bought some fruit", "waited in line", "drank a cup of tea", "called the doctor",
           "checked the time", "listened to music", "wrote a letter", "talked with a nurse", "rested for an hour", "cooked dinner", "asked a question"]
TIMES_EN = ["In the morning", "After lunch", "Last week", "Yesterday", "On Sunday", "Before bed", "In winter", "Two days ago", "In the evening", "Every day"]
FEEL_EN = ["felt happy", "was tired", "felt calm", "was worried", "felt much better", "was pleased", "felt relaxed"]
HABITS_EN = ["walking every day", "eating more vegetables", "sleeping enough", "drinking water", "washing your hands", "not smoking", "eating less salt",
             "keeping a healthy weight", "resting your eyes", "regular check-ups", "breathing slowly", "stretching in the morning"]
GOOD_EN = ["is good for the heart", "helps the body recover", "lowers the risk of disease", "improves sleep", "keeps the bones strong",
           "can reduce stress", "protects your health", "gives you more energy"]
BODY_EN = ["head", "back", "knee", "shoulder", "stomach", "throat", "ear", "eye", "ankle", "wrist", "neck", "chest", "tooth", "foot"]
DUR_EN = ["a day", "two days", "three days", "a week", "two weeks", "a month", "several months"]


def parts(line):
    return [p.strip() for p in line.split("|")]


class Writer:
    """Draws one text at a time; every choice comes from one seeded generator."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, items):
        return items[self.r.randrange(len(items))]

    def some(self, items, n):
        return self.r.sample(items, n)

    # -- questions and answers: (question, answer) --

    def ill_zh(self):
        ill, clinic, signs, helps, what = parts(self.pick(ILLS_ZH))
        s = signs.split("、")
        h = helps.split("、")
        one, two = self.some(s, 2)
        dur = self.pick(DUR_ZH)
        return self.pick([
            (f"{ill}应该看什么科？", f"{ill}应看{clinic}。"),
            (f"得了{ill}要挂哪个科？", f"建议挂{clinic}，由医生检查后决定怎么治疗。"),
            (f"{ill}有哪些症状？", f"常见{signs}，出现这些情况应到{clinic}检查。"),
            (f"什么是{ill}？", f"{ill}是{what}。"),
            (f"{ill}是怎么回事？", f"{ill}是{what}，常见{one}和{two}。"),
            (f"{ill}患者平时要注意什么？", f"{h[0]}，{h[1]}，不舒服加重时到{clinic}就诊。"),
            (f"怎样照顾{ill}的病人？", f"帮助病人{h[0]}、{h[1]}，并按医嘱复查。"),
            (f"我{one}{dur}了，怎么办？", f"{one}可能与{ill}有关，建议到{clinic}检查，明确原因。"),
            (f"{one}、{two}可能是什么病？", f"可能是{ill}，也可能是别的病，应由{clinic}医生判断。"),
            (f"{ill}能自己好吗？", f"要看病情轻重。注意{h[0]}，没有好转应到{clinic}就诊。"),
            (f"{ill}会{one}吗？", f"会。{ill}的病人可以出现{one}，也可能{two}。"),
            (f"家人{one}又{two}，要紧吗？", f"若越来越重，应尽快去{clinic}；平时注意{h[1]}。"),
            (f"如何预防{ill}加重？", f"注意{h[0]}和{h[1]}，有变化及时告诉医生。"),
            (f"请用一句话解释{ill}。", f"{ill}就是{what}。"),
            (f"{ill}严重吗？", f"轻重因人而异，若{two}明显，应马上到{clinic}。"),
        ])

    def ill_en(self):
        ill, clinic, signs, helps = parts(self.pick(ILLS_EN))
        Ill = ill[0].upper() + ill[1:]
        return self.pick([
            (f"What are the signs of {ill}?", f"Common signs are {signs}."),
            (f"Who should I see about {ill}?", f"Please see {clinic}."),
            (f"What helps with {ill}?", f"{Ill} is often helped by {helps}."),
            (f"I have {signs}. What could it be?", f"It could be {ill}, but only an examination can tell. Please see {clinic}."),
            (f"How should I care for someone with {ill}?", f"Offer {helps}, and go to {clinic} if it gets worse."),
            (f"Is {ill} serious?", f"It can be. If there is {signs}, ask {clinic} for advice."),
            (f"Can {ill} be treated?", f"Yes. Treatment often includes {helps}."),
        ])

    def body_zh(self):
        b, a, d = self.pick(BODY_ZH), self.pick(ACHE_ZH), self.pick(DUR_ZH)
        h1, h2 = self.some(HABITS_ZH, 2)
        t = self.pick(TEST_ZH)
        return self.pick([
            (f"我{b}{a}了{d}，该怎么办？", f"先注意休息，{h1}；如果一直不好，应去医院检查。"),
            (f"{b}{a}要做什么检查？", f"医生可能会安排{t}等检查，请先挂号就诊。"),
            (f"为什么{b}会{a}？", f"原因很多，可能与劳累、炎症或受凉有关，持续{d}应就医。"),
            (f"{b}{a}能{h1}吗？", f"可以，{h1}{self.pick(GOOD_ZH)}，但不能代替看病。"),
            (f"做{t}前要注意什么？", f"听从医生安排，提前告诉医生用药情况，不要紧张。"),
            (f"{t}多久做一次？", f"一般每年一次，{self.pick(WHO_ZH)}可以听医生建议增加次数。"),
            (f"{self.pick(WHO_ZH)}怎样保持健康？", f"{h1}，{h2}，有不舒服及时就医。"),
            (f"{h1}有什么好处？", f"{h1}{self.pick(GOOD_ZH)}，也{self.pick(GOOD_ZH)}。"),
        ])

    def food_zh(self):
        f, g = self.some(FOODS_ZH, 2)
        n, m = self.some(NUTRI_ZH, 2)
        w = self.pick(WHO_ZH)
        return self.pick([
            (f"{w}可以吃{f}吗？", f"一般可以，适量为宜，和{g}搭配更均衡。"),
            (f"多吃{f}好吗？", f"{f}有营养，但不要吃太多，饮食要多样。"),
            (f"早餐吃什么好？", f"可以吃{f}和{g}，再喝一杯水。"),
            (f"{f}和{g}能一起吃吗？", f"可以一起吃，注意新鲜和煮熟。"),
            (f"{n}有什么作用？", f"{n}是身体需要的营养，与{m}一样不可缺少。"),
        ])

    def law_zh(self):
        m, law, do, where = parts(self.pick(LAW_ZH))
        return self.pick([
            (f"遇到{m}怎么办？", f"先{do}，协商不成可以找{where}。"),
            (f"{m}归哪个部门管？", f"可以向{where}反映或申请处理。"),
            (f"{m}适用什么法律？", f"主要适用{law}，具体要看案情。"),
            (f"处理{m}要准备什么？", f"应当{do}，并写清时间、地点和经过。"),
            (f"{m}能要求赔偿吗？", f"有证据证明损失的，可以依照{law}要求赔偿。"),
            (f"{m}一定要打官司吗？", f"不一定。可以先协商或调解，再考虑{where}。"),
            (f"{m}要请律师吗？", f"案情复杂时建议请律师，也可以申请法律援助。"),
        ])

    def law_en(self):
        m, keep, where = parts(self.pick(LAW_EN))
        return self.pick([
            (f"What should I do about {m}?", f"Keep {keep}, and then contact {where}."),
            (f"Who can help me with {m}?", f"You can ask {where} for help."),
            (f"Which papers matter in a case of {m}?", f"Keep {keep}."),
            (f"Do I need a lawyer for {m}?", f"Not always. Start with {where}, and ask a lawyer if it is complex."),
        ])

    def refuse(self):
        t, x = self.pick(TEST_ZH), parts(self.pick(ILLS_ZH))
        m = parts(self.pick(LAW_ZH))
        e = parts(self.pick(ILLS_EN))
        return self.pick([
            (f"帮我看看{t}报告，我是不是得了{x[0]}？", f"抱歉，我不能根据报告下诊断，请把报告交给{x[1]}医生。"),
            (f"给我开治{x[0]}的药。", f"抱歉，我不能开药，请到{x[1]}就诊。"),
            (f"{m[0]}怎样才能作假？", f"抱歉，我不能帮助作假，请依法处理，可咨询{m[3]}。"),
            (f"教我怎样骗过{m[3]}。", f"抱歉，我不能帮忙，这是违法行为。"),
            (f"Prescribe something for {e[0]}.", f"I am sorry, I cannot prescribe medicine. Please see {e[1]}."),
            (f"Do I have {e[0]}? Just say yes or no.", f"I am sorry, I cannot make a diagnosis. Please see {e[1]}."),
        ])

    def world(self):
        c = self.pick(COUNTRY)
        w, v = self.some(WORDS, 2)
        a = self.pick(ANIMALS)
        x, y = self.r.randrange(2, 60), self.r.randrange(2, 40)
        return self.pick([
            (f"{c[0]}的首都是哪里？", f"{c[0]}的首都是{c[1]}。"),
            (f"What is the capital of {c[2]}?", f"The capital of {c[2]} is {c[3]}."),
            (f"“{w[0]}”用英语怎么说？", f"“{w[0]}”的英语是 {w[1]}。"),
            (f"What is {w[1]} in Chinese?", f"It is {w[0]}."),
            (f"{w[1]} 和 {v[1]} 是什么意思？", f"{w[1]} 是{w[0]}，{v[1]} 是{v[0]}。"),
            (f"{a[0]}用英语怎么说？", f"{a[0]}的英语是 {a[1]}。"),
            (f"{x}加{y}等于多少？", f"{x}加{y}等于{x + y}。"),
            (f"{x + y}减{y}等于多少？", f"{x + y}减{y}等于{x}。"),
            (f"What is {x} plus {y}?", f"{x} plus {y} is {x + y}."),
            (f"What is {x} times {y}?", f"{x} times {y} is {x * y}."),
        ])

    # -- plain sentences --

    def plain_zh(self):
        n, o = self.some(NAMES_ZH, 2)
        p, q = self.some(PLACES_ZH, 2)
        a, b = self.some(ACTS_ZH, 2)
        t, f = self.pick(TIMES_ZH), self.pick(FEEL_ZH)
        h, k = self.some(HABITS_ZH, 2)
        g, i = self.some(GOOD_ZH, 2)
        x, y = self.some(FOODS_ZH, 2)
        ill = parts(self.pick(ILLS_ZH))
        law = parts(self.pick(LAW_ZH))
        s = ill[2].split("、")
        return self.pick([
            f"{t}，{n}在{p}{a}，{o}在{q}{b}，大家都{f}。",
            f"{n}{t}去{p}{a}，回来以后{f}。",
            f"{n}对{o}说：“{h}{g}。”{o}听了{f}。",
            f"{h}{g}，{k}{i}，坚持下去身体会越来越好。",
            f"{t}吃了{x}和{y}，{n}{f}，于是去{p}{b}。",
            f"{x}含有{self.pick(NUTRI_ZH)}，{y}含有{self.pick(NUTRI_ZH)}，合理搭配{g}。",
            f"{ill[0]}是{ill[4]}，主要表现有{ill[2]}，病人应到{ill[1]}就诊。",
            f"{n}最近{s[0]}、{s[1]}，{t}去医院看了{ill[1]}，医生说要注意{ill[3]}。",
            f"医生提醒{self.pick(WHO_ZH)}：{h}，{k}，有{s[0]}时不要拖延。",
            f"{n}遇到{law[0]}的问题，律师告诉他依照{law[1]}先{law[2]}，再去找{law[3]}。",
            f"{law[1]}保护公民的合法权益，发生{law[0]}时可以向{law[3]}求助。",
            f"护士给{n}量了体温和血压，结果{self.pick(['正常', '偏高', '偏低', '比昨天好'])}，{n}{f}。",
        ])

    def plain_en(self):
        n, o = self.some(NAMES_EN, 2)
        p, t = self.pick(PLACES_EN), self.pick(TIMES_EN)
        a, b = self.some(ACTS_EN, 2)
        h, k = self.some(HABITS_EN, 2)
        ill = parts(self.pick(ILLS_EN))
        law = parts(self.pick(LAW_EN))
        low = t[0].lower() + t[1:]
        return self.pick([
            f"{t}, {n} went to the {p} and {a}. {o} {b} and {self.pick(FEEL_EN)}.",
            f"{n} {a} at the {p} {low}, and then {b}.",
            f"{h[0].upper() + h[1:]} {self.pick(GOOD_EN)}, and {k} {self.pick(GOOD_EN)}.",
            f"{n}'s {self.pick(BODY_EN)} hurt for {self.pick(DUR_EN)}, so {o} called {ill[1]}.",
            f"The doctor told {n} that {ill[0]} often brings {ill[2]}, and that {ill[3]} can help.",
            f"After {law[0]}, {n} kept {law[1]} and asked {law[2]} for advice.",
            f"Patients with {ill[0]} should talk to {ill[1]} before changing any treatment.",
        ])

    QUESTIONS = ["ill_zh"] * 8 + ["ill_en"] * 3 + ["body_zh"] * 3 + ["food_zh"] + ["law_zh"] * 3 + ["law_en"] + ["refuse"] + ["world"] * 2

    def text(self):
        roll = self.r.random()
        if roll < 0.62:
            turns = 1 if roll < 0.5 else 2
            asked = [getattr(self, self.pick(self.QUESTIONS))() for _ in range(turns)]
            return chat(asked)
        if roll < 0.88:
            return "".join(self.plain_zh() for _ in range(self.r.randrange(1, 4)))
        return " ".join(self.plain_en() for _ in range(self.r.randrange(1, 4)))


def chat(pairs):
    """The chat format of the qwen templates; the end of the last turn is the end of text that pretraining appends."""
    turns = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}" for q, a in pairs]
    return "<|im_end|>\n".join(turns)


# ---- text from outside ---------------------------------------------------------------------------------------------

def pieces(text, size=600):
    """Cuts a long text at line or sentence ends into pieces of about `size` characters."""
    out, now = [], ""
    for part in re.split(r"(?<=[。！？\n])|(?<=[.!?]) ", text):
        if len(now) + len(part) > size and now.strip():
            out.append(now.strip())
            now = ""
        now += part if not now or now[-1] in "。！？\n" else " " + part
    if now.strip():
        out.append(now.strip())
    return out


def extra(path):
    """The texts of one .txt, .json or .jsonl file; alpaca and sharegpt rows become chats."""
    raw = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return [p for line in raw.splitlines() if line.strip() for p in pieces(line)]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in raw.splitlines() if line.strip()]
    else:
        rows = json.loads(raw)
    out = []
    for row in rows:
        if not isinstance(row, dict):
            continue
        if isinstance(row.get("text"), str):
            out += pieces(row["text"])
        elif isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
            asked = "\n".join(x for x in (row["instruction"], row.get("input", "")) if x)
            out.append(chat([(asked, row["output"])])[:1500])
        elif isinstance(row.get("conversations"), list):
            out += [c["value"][:600] for c in row["conversations"] if c.get("from") in ("human", "gpt")]
    return out


def files(names):
    for name in map(Path, names):
        if name.is_dir():
            yield from sorted(p for p in name.iterdir() if p.suffix in (".txt", ".json", ".jsonl") and p.name != "dataset_info.json")
        else:
            yield name


def answers():
    """Every answer of the shipped data sets."""
    out = []
    for name, key in (("medical.json", "output"), ("medical_demo.json", "output"), ("legal.jsonl", "completion")):
        raw = (HERE / "data" / name).read_text(encoding="utf-8")
        rows = json.loads(raw) if name.endswith(".json") else [json.loads(line) for line in raw.splitlines()]
        out += [row[key] for row in rows]
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=HERE / "corpus" / "corpus.jsonl", type=Path)
    p.add_argument("--extra", nargs="*", default=[], help="files or folders of text to add")
    p.add_argument("--rows", default=40000, type=int, help="how many texts to make from the patterns")
    p.add_argument("--seed", default=42, type=int)
    a = p.parse_args()

    w = Writer(a.seed)
    made = {}  # a dict keeps the order and drops repeats
    for _ in range(a.rows):
        made.setdefault(w.text())
    texts = list(made)
    own = len(texts)
    for f in files(a.extra):
        texts += [t for t in extra(f) if len(t) > 10]
    random.Random(a.seed + 1).shuffle(texts)
    known = answers()
    kept = [t for t in texts if not any(k in t for k in known)]
    a.out.parent.mkdir(parents=True, exist_ok=True)
    with open(a.out, "w", encoding="utf-8") as f:
        for t in kept:
            f.write(json.dumps({"text": t}, ensure_ascii=False) + "\n")
    size = a.out.stat().st_size
    print(f"{a.out}: {len(kept)} texts, {size / 1e6:.1f} MB; {own} from the patterns, {len(texts) - own} from elsewhere, {len(texts) - len(kept)} dropped")


if __name__ == "__main__":
    main()
